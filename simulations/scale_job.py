"""One plan, measured; a file of its own, so that the process that makes it loads little."""

import gc
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from simulations.result_store import Row
from simulations.samplers import build_sampler, every_fifth

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class ScaleJob:
    """One plan, in a process that has done nothing else."""

    columns: ClassVar[tuple[str, ...]] = ("examples", "steps", "seconds", "memory_mb")

    method: str
    clients: int
    examples_per_client: int
    batch_size: int

    def run(self) -> list[Row]:
        """Return one row: what was planned, and the processor time and peak memory that it took.

        Clients have a geometrically distributed number of examples. Memory is what the
        process's peak grew by, the clients' own numbers not counted.
        """
        draws = np.random.default_rng(0)
        counts = draws.geometric(1 / self.examples_per_client, self.clients).tolist()
        num_examples = dict(enumerate(counts))
        sampler = build_sampler(
            self.method, batch_size=self.batch_size, seed=0, slow=every_fifth(self.clients)
        )
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
