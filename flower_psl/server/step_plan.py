"""The steps of a round: which examples of which clients make each of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flower_psl.sampling import BatchSchedule

# The plan of a round is made once; a later plan would have a higher number.
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
    """

    server_round: int
    step: int
    batch_sizes: Mapping[int, int]
    starts: Mapping[int, int]

    def __str__(self) -> str:
        """Return, for example, ``round 2, step 40``."""
        return f"round {self.server_round}, step {self.step}"


def step_plans(
    server_round: int, schedule: BatchSchedule, num_examples: Mapping[int, int]
) -> Iterator[StepPlan]:
    """Yield a round's steps.

    Parameters
    ----------
    server_round : int
        The round, from 1.
    schedule : BatchSchedule
        Its batch sizes, and where the round begins in each client's passes through its
        data. Unless it says so, each round is a pass.
    num_examples : mapping of int to int
        Examples of each client.
    """
    at = dict(
        schedule.starts
        or {key: (server_round - 1) * num_examples[key] for key in schedule.client_keys}
    )
    for step, batch_sizes in enumerate(schedule, 1):
        yield StepPlan(
            server_round=server_round,
            step=step,
            batch_sizes=batch_sizes,
            starts={key: at[key] for key in batch_sizes},
        )
        for key, batch_size in batch_sizes.items():
            at[key] += batch_size


def with_next(plans: Iterable[StepPlan]) -> Iterator[tuple[StepPlan, StepPlan | None]]:
    """Yield each plan with the one after it."""
    rest = iter(plans)
    plan = next(rest, None)
    while plan is not None:
        ahead = next(rest, None)
        yield plan, ahead
        plan = ahead
