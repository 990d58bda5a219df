"""Vanilla split learning: one client after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flower_psl.sampling.local_batches import local_batches
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True)
class SequentialSampler(Sampler):
    """Vanilla split learning (SL in arXiv:2407.15738): one client at a time, in key order.

    Each step takes B examples of one client; a client's last step has what it has left.
    Then it is the next client's turn.

    Parameters
    ----------
    batch_size : int
        The batch size B of a step, in examples.

    Raises
    ------
    ConfigError
        If the argument is invalid.
    """

    name: ClassVar[str] = "SL"

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
        batch_sizes = np.full(len(pool.keys), self.batch_size, dtype=np.int64)
        letters, sizes = local_batches(pool, batch_sizes)
        return BatchSchedule(pool, letters, range(len(letters) + 1), sizes)
