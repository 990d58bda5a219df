"""What processes take, from time to time."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from simulations.processes import ProcessLoad, load_of


@dataclass(frozen=True)
class Growth:
    """A process in two parts of a run: medians of its memory, and extremes of what is counted.

    Threads and files are the most that it had in the first part, and the least in the second.
    Those that come and go with the machine's load have not grown; what is leaked stays, and so
    is in the least too. Memory hardly comes and goes: of its extremes, a slow growth would be
    seen only once it is larger than what they are apart anyway.
    """

    name: str
    early: ProcessLoad
    late: ProcessLoad


class LoadLog:
    """Looks at processes, and remembers.

    Parameters
    ----------
    find : callable
        Returns the processes to look at, by name.
    """

    def __init__(self, find: Callable[[], Mapping[str, int]]) -> None:
        self._find = find
        self._loads: dict[str, list[tuple[float, ProcessLoad]]] = {}

    def look(self) -> None:
        """Note what each process takes now."""
        for name, process in self._find().items():
            try:
                load = load_of(process)
            except ProcessLookupError:
                continue  # its run is over
            self._loads.setdefault(name, []).append((time.time(), load))

    def growth(self, early: tuple[float, float], late: tuple[float, float]) -> list[Growth]:
        """Compare two parts of a run.

        Parameters
        ----------
        early, late : tuple of float
            From when until when, in seconds of the system's clock.

        Raises
        ------
        RuntimeError
            If a process was not looked at in both.
        """
        return [
            Growth(name, self._taken(name, early, max), self._taken(name, late, min))
            for name in sorted(self._loads)
        ]

    def _taken(
        self,
        name: str,
        part: tuple[float, float],
        extreme: Callable[[Iterable[float]], float],
    ) -> ProcessLoad:
        loads = [load for at, load in self._loads[name] if part[0] <= at <= part[1]]
        if not loads:
            raise RuntimeError(f"{name} was not there from {part[0]:.0f} to {part[1]:.0f}")
        return ProcessLoad(
            resident_mb=statistics.median(load.resident_mb for load in loads),
            threads=int(extreme(load.threads for load in loads)),
            pool_threads=int(extreme(load.pool_threads for load in loads)),
            open_files=int(extreme(load.open_files for load in loads)),
        )
