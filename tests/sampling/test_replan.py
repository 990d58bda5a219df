"""What is left of a round can be planned anew with every sampler."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.sampling import (
    BalancedSampler,
    BatchSchedule,
    ClientCost,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    LatentDirichletSampler,
    ProportionalLocalSampler,
    QuotaSampler,
    Sampler,
    SequentialSampler,
    StragglerSampler,
)

FULL = {0: 30, 3: 20, 8: 10}
COSTS = CostModel(
    {
        key: ClientCost(seconds_per_participation=1.0 + 8 * (key == 3), seconds_per_example=0.1)
        for key in FULL
    }
)
SAMPLERS: list[Sampler] = [
    GlobalSampler(16),
    GlobalSampler(16, min_client_batch=4),
    FixedLocalSampler(batch_size=16),
    FixedLocalSampler(local_batch_size=5),
    ProportionalLocalSampler(16),
    SequentialSampler(16),
    BalancedSampler(16),
    LatentDirichletSampler(batch_size=16, concentration=2.0),
    StragglerSampler(batch_size=16, participation=0.5, slow=(3,)),
    StragglerSampler(batch_size=16, participation=0.5, cost=COSTS),
    QuotaSampler(GlobalSampler(16), quota=0.5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@settings(deadline=None, max_examples=30)
@given(left=st.tuples(*(st.integers(0, count) for count in FULL.values())))
def test_all_that_is_left_is_used_once(sampler: Sampler, left: tuple[int, ...]) -> None:
    counts = dict(zip(FULL, left, strict=True))
    schedule = sampler.replan(counts, server_round=2, plan=1)
    if schedule is None:
        assert not any(left)
    else:
        assert {key: count for key, count in counts.items() if count} == schedule.totals


def first_step(schedule: BatchSchedule | None) -> Mapping[int, int]:
    assert schedule is not None
    return schedule[0]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_plans_are_drawn_from_streams_of_their_own(sampler: Sampler) -> None:
    counts = {0: 3000, 3: 2000, 8: 1000}
    plans = [
        first_step(sampler.replan(counts, server_round, plan))
        for server_round in (1, 2)
        for plan in range(1, 6)
    ]
    assert plans[3] == first_step(sampler.replan(counts, 1, 4))
    draws = not isinstance(
        sampler, (FixedLocalSampler, ProportionalLocalSampler, SequentialSampler)
    )
    assert (len({tuple(plan.items()) for plan in plans}) > 1) is draws


def test_a_last_batch_that_is_dropped_is_dropped_here_too() -> None:
    sampler = GlobalSampler(16, drop_last=True)
    assert sampler.replan({0: 10, 3: 5}, 1, 1) is None
    schedule = sampler.replan({0: 20, 3: 5}, 1, 1)
    assert schedule is not None
    assert schedule.effective_batch_sizes.tolist() == [16]


def test_slow_clients_get_more_steps_if_they_need_them() -> None:
    sampler = StragglerSampler(batch_size=10, participation=0.25, slow=(3,))
    schedule = sampler.replan({0: 20, 3: 20, 8: 0}, 1, 1)
    assert schedule is not None
    assert [3 in step for step in schedule].count(True) == 2


class Bare(Sampler):
    """No dataclass: what it draws with is its own affair."""

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        return BatchSchedule.from_steps([num_examples], num_examples)


def test_a_sampler_of_ones_own_plans_what_is_left() -> None:
    assert first_step(Bare().replan({0: 4, 3: 0}, 1, 1)) == {0: 4}
