import pytest

from flower_psl import BatchSchedule, GlobalSampler, QuotaSampler
from flower_psl.server.step_plan import StepPlan, step_plans, with_next

NUM_EXAMPLES = {2: 3, 7: 2}
STEPS = [{2: 1, 7: 2}, {2: 2}]


@pytest.mark.parametrize(("server_round", "first"), [(1, {2: 0, 7: 0}), (4, {2: 9, 7: 6})])
def test_each_round_is_a_pass_of_every_client(server_round: int, first: dict[int, int]) -> None:
    schedule = BatchSchedule.from_steps(STEPS, NUM_EXAMPLES)
    assert list(step_plans(server_round, schedule, NUM_EXAMPLES)) == [
        StepPlan(server_round=server_round, step=1, batch_sizes=STEPS[0], starts=first),
        StepPlan(
            server_round=server_round, step=2, batch_sizes=STEPS[1], starts={2: first[2] + 1}
        ),
    ]


def test_a_schedule_may_say_where_its_round_begins() -> None:
    schedule = BatchSchedule.from_steps(STEPS, NUM_EXAMPLES).starting_at({2: 3, 7: 10})
    starts = [plan.starts for plan in step_plans(9, schedule, NUM_EXAMPLES)]
    assert starts == [{2: 3, 7: 10}, {2: 4}]


def test_with_a_quota_each_pass_takes_several_rounds_and_uses_each_example_once() -> None:
    num_examples, used = {0: 7, 1: 5}, {0: list[int](), 1: list[int]()}
    sampler = QuotaSampler(GlobalSampler(batch_size=3, seed=0), quota={0: 0.34})
    for server_round in (1, 2, 3):
        schedule = sampler.schedule(num_examples, server_round)
        for plan in step_plans(server_round, schedule, num_examples):
            for key, size in plan.batch_sizes.items():
                used[key] += range(plan.starts[key], plan.starts[key] + size)
    assert used == {0: list(range(7)), 1: list(range(15))}


def test_every_plan_comes_with_the_next() -> None:
    schedule = BatchSchedule.from_steps(STEPS, NUM_EXAMPLES)
    one, two = step_plans(1, schedule, NUM_EXAMPLES)
    assert list(with_next([one, two])) == [(one, two), (two, None)]
    assert list(with_next([])) == []
