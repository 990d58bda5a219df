"""What the endurance app says of its steps, while it runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from simulations.endurance.endurance_app.step_times import STEP_TIMES


@dataclass(frozen=True)
class TakenStep:
    """A step that was taken.

    Attributes
    ----------
    at : float
        When, in seconds of the system's clock.
    seconds : float
        How long it took.
    clients : frozenset of int
        The keys of those who took part.
    """

    at: float
    seconds: float
    clients: frozenset[int]


class StepLog:
    """Reads the steps of a run that is about to start, and while it goes on.

    Parameters
    ----------
    out : Path
        The run's folder. What an earlier run left there is removed.

    Attributes
    ----------
    steps : list of TakenStep
        Those that have been read.
    """

    def __init__(self, out: Path) -> None:
        self.steps: list[TakenStep] = []
        self._path = out / STEP_TIMES
        self._path.unlink(missing_ok=True)
        self._file: IO[str] | None = None
        self._rest = ""

    def read(self) -> None:
        """Read what has been written since."""
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open(encoding="utf-8")
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in map(json.loads, lines):
            clients = frozenset(line["clients"])
            self.steps.append(TakenStep(line["at"], line["seconds"], clients))

    def close(self) -> None:
        """Read the rest."""
        self.read()
        if self._file is not None:
            self._file.close()
