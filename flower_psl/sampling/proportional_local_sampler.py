"""Fixed proportional local sampling (FPLS): batch sizes in proportion to the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flower_psl.sampling.local_batches import parallel_schedule
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True)
class ProportionalLocalSampler(Sampler):
    """FPLS, a baseline of arXiv:2407.15738: client k gives b_k = B D_k / D to every step.

    b_k is rounded half up, in exact integer arithmetic, and at least 1. This rounding makes
    the effective batch size differ from B, and clients' data end at different steps: those
    with data left go on, their last batches being what they have left. With equal D_k the
    schedule is that of `FixedLocalSampler(batch_size=B)`.

    Parameters
    ----------
    batch_size : int
        The global batch size B to be approximated, in examples.

    Raises
    ------
    ConfigError
        If the argument is invalid.
    """

    name: ClassVar[str] = "FPLS"

    batch_size: int

    def __post_init__(self) -> None:
        """Check the argument."""
        size = whole_number("batch_size", self.batch_size, at_least=1)
        object.__setattr__(self, "batch_size", size)

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Return the schedule, the same in every round; see `Sampler.schedule`."""
        whole_number("server_round", server_round, at_least=0)
        pool = Pool.of(num_examples)
        pool.check_batch_size(self.batch_size)
        total = pool.num_examples
        batch_sizes = [
            max(1, (2 * self.batch_size * count + total) // (2 * total))
            for count in pool.counts.tolist()
        ]
        return parallel_schedule(pool, np.array(batch_sizes, dtype=np.int64))
