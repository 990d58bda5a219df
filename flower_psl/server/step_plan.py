"""One step of a round: which examples of which clients make it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

# Every round begins with this one; each plan that is drawn anew has a higher number.
FIRST_PLAN = 0


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Which examples make one step.

    Attributes
    ----------
    server_round, step : int
        The round and the step in it, both from 1.
    batch_sizes : mapping of int to int
        Examples by client key, in ascending order of the keys.
    starts : mapping of int to int
        Where in its passes through its data each of them is, as `StepId.start` counts.
    plan : int
        The number of the round's plan that the step belongs to.
    """

    server_round: int
    step: int
    batch_sizes: Mapping[int, int]
    starts: Mapping[int, int]
    plan: int = FIRST_PLAN

    def __str__(self) -> str:
        """Return, for example, ``round 2, step 40``."""
        return f"round {self.server_round}, step {self.step}"

    @property
    def num_examples(self) -> int:
        """Examples of all clients."""
        return sum(self.batch_sizes.values())

    def of(self, keys: Iterable[int]) -> "StepPlan":
        """Return the part of the step that some of its clients make."""
        there = set(keys)
        sizes = {key: size for key, size in self.batch_sizes.items() if key in there}
        return self if len(sizes) == len(self.batch_sizes) else replace(self, batch_sizes=sizes)
