"""One plan, measured; a file of its own, so that the process that makes it loads little."""

import gc
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from flower_psl import ConfigError
from simulations.planned_job import PlannedJob
from simulations.result_store import Row

_PLANNED_TO_CHECK = 1_000  # clients at most: so few are planned in no time
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class ScaleJob(PlannedJob):
    """One plan, in a process that has done nothing else.

    Attributes
    ----------
    method : str
        The sampler.
    clients, examples_per_client : int
        Number of clients K, and what each has on average.
    batch_size : int
        The global batch size B.
    """

    columns: ClassVar[tuple[str, ...]] = ("examples", "steps", "seconds", "memory_mb")

    method: str
    clients: int
    examples_per_client: int
    batch_size: int
    seed: ClassVar[int] = 0  # type: ignore[misc]

    def num_examples(self) -> dict[int, int]:
        """Return the number of examples of each client, geometrically distributed."""
        draws = np.random.default_rng(self.seed)
        counts = draws.geometric(1 / self.examples_per_client, self.clients).tolist()
        return dict(enumerate(counts))

    def check(self) -> None:
        """Refuse what cannot be planned, without the plans that take long."""
        if self.clients <= _PLANNED_TO_CHECK:
            super().check()
        elif self.batch_size > (total := sum(self.num_examples().values())):
            raise ConfigError(
                f"batch_size is {self.batch_size}, but {self.clients} clients together have "
                f"{total} examples; a global batch cannot exceed them: choose a smaller one"
            )

    def run(self) -> list[Row]:
        """Return one row: what was planned, and the processor time and peak memory that it took.

        Memory is what the process's peak grew by, the clients' own numbers not counted.
        """
        num_examples = self.num_examples()
        sampler = self.sampler()
        gc.collect()
        before = _peak_bytes()
        started = time.process_time()
        schedule = sampler.schedule(num_examples, 1)
        seconds = time.process_time() - started
        return [
            {
                "examples": schedule.num_examples,
                "steps": len(schedule),
                "seconds": seconds,
                "memory_mb": (_peak_bytes() - before) / 1e6,
            }
        ]


def _peak_bytes() -> int:
    """Return the largest memory that this process has had so far."""
    if _STATUS.exists():
        # Unlike getrusage's, Linux's own figure does not count the parent that forked us.
        [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
