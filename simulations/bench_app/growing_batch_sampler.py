"""Steps of one client, of sizes that are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flower_psl import BatchSchedule, Sampler


@dataclass(frozen=True)
class GrowingBatchSampler(Sampler):
    """Let the first client give one batch of each size; the others give nothing.

    Parameters
    ----------
    batch_sizes : tuple of int
        Examples of each step of a round.
    """

    name: ClassVar[str] = "growing batches"

    batch_sizes: tuple[int, ...]

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Return the schedule, the same in every round; see `Sampler.schedule`."""
        first = min(num_examples)
        return BatchSchedule.from_steps([{first: size} for size in self.batch_sizes], num_examples)
