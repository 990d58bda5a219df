from collections.abc import Mapping
from typing import Any

import pytest

from flower_psl import BatchSchedule, ConfigError, GlobalSampler, QuotaSampler, Sampler
from flower_psl.server.ledger import Ledger
from flower_psl.server.round_plan import RoundPlan
from flower_psl.server.step_plan import StepPlan

NUM_EXAMPLES = {2: 3, 7: 2}
STEPS = [{2: 1, 7: 2}, {2: 2}]


class Written(Sampler):
    """Plans the steps that it was given, whoever is there."""

    def __init__(self, *steps: Mapping[int, int], starts: Mapping[int, int] | None = None) -> None:
        self._steps = steps
        self._starts = starts

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        schedule = BatchSchedule.from_steps(self._steps, NUM_EXAMPLES)
        return schedule if self._starts is None else schedule.starting_at(self._starts)


def plan_of(sampler: Any, ledger: Ledger, bound: int | None = None) -> RoundPlan:
    return RoundPlan(sampler, NUM_EXAMPLES, ledger, bound)


def follow(plan: RoundPlan, ledger: Ledger) -> list[StepPlan]:
    """Take all steps that are left."""
    steps: list[StepPlan] = []
    step, ahead = plan.next_steps()
    while step is not None:
        steps.append(step)
        ledger.accept(step.batch_sizes, loss=0.0)
        expected = ahead
        step, ahead = plan.next_steps()
        assert step == expected
    return steps


@pytest.mark.parametrize(("server_round", "first"), [(1, {2: 0, 7: 0}), (4, {2: 9, 7: 6})])
def test_each_round_is_a_pass_of_every_client(server_round: int, first: dict[int, int]) -> None:
    ledger = Ledger()
    plan = plan_of(Written(*STEPS), ledger)
    plan.start_round(server_round)
    assert follow(plan, ledger) == [
        StepPlan(server_round=server_round, step=1, batch_sizes=STEPS[0], starts=first),
        StepPlan(
            server_round=server_round, step=2, batch_sizes=STEPS[1], starts={2: first[2] + 1}
        ),
    ]


def test_a_schedule_may_say_where_its_round_begins() -> None:
    ledger = Ledger()
    plan = plan_of(Written(*STEPS, starts={2: 3, 7: 10}), ledger)
    plan.start_round(9)
    assert [step.starts for step in follow(plan, ledger)] == [{2: 3, 7: 10}, {2: 4}]


def test_a_round_may_be_bounded() -> None:
    ledger = Ledger()
    plan = plan_of(Written(*STEPS), ledger, bound=1)
    plan.start_round(1)
    assert plan.num_steps == 1
    assert len(follow(plan, ledger)) == 1


def test_with_a_quota_each_pass_takes_several_rounds_and_uses_each_example_once() -> None:
    num_examples, used = {0: 7, 1: 5}, {0: list[int](), 1: list[int]()}
    ledger = Ledger()
    sampler = QuotaSampler(GlobalSampler(batch_size=3, seed=0), quota={0: 0.34})
    plan = RoundPlan(sampler, num_examples, ledger, None)
    for server_round in (1, 2, 3):
        plan.start_round(server_round)
        for step in follow(plan, ledger):
            for key, size in step.batch_sizes.items():
                used[key] += range(step.starts[key], step.starts[key] + size)
    assert used == {0: list(range(7)), 1: list(range(15))}


def test_who_leaves_is_planned_without_and_who_comes_back_goes_on_where_it_was() -> None:
    num_examples, ledger = {0: 20, 1: 20, 2: 20}, Ledger()
    plan = RoundPlan(GlobalSampler(batch_size=8, seed=3), num_examples, ledger, None)
    plan.start_round(1)
    step, _ = plan.next_steps()
    assert step is not None
    ledger.accept(step.batch_sizes, 0.0)
    ledger.out[1] = "gone"
    plan.redraw()
    step, _ = plan.next_steps()
    assert step is not None
    assert (step.plan, step.step, step.num_examples) == (1, 2, 8)
    assert 1 not in step.batch_sizes
    ledger.accept(step.batch_sizes, 0.0)
    del ledger.out[1]
    plan.redraw()
    before = dict(ledger.used)
    rest = follow(plan, ledger)
    assert {step.plan for step in rest} == {2}
    assert next(step.starts[1] for step in rest if 1 in step.starts) == before[1]
    assert [step.num_examples for step in rest[:-1]] == [8] * (len(rest) - 1)
    assert ledger.used == num_examples


def test_a_plan_that_is_drawn_anew_is_another_one() -> None:
    num_examples, ledger = {0: 200, 1: 200}, Ledger()
    plan = RoundPlan(GlobalSampler(batch_size=8, seed=3), num_examples, ledger, None)
    plan.start_round(1)
    plans = []
    for _ in range(3):
        plan.redraw()
        step, _ = plan.next_steps()
        assert step is not None
        plans.append(step.batch_sizes)
    assert len({tuple(sizes.items()) for sizes in plans}) > 1


def test_a_round_that_somebody_misses_from_its_start_is_planned_without() -> None:
    ledger = Ledger(out={7: "gone"})
    plan = plan_of(GlobalSampler(batch_size=2, seed=0), ledger)
    plan.start_round(2)
    steps = follow(plan, ledger)
    assert {key for step in steps for key in step.batch_sizes} == {2}
    assert ledger.used == {2: 3, 7: 0}


def test_less_than_a_batch_that_is_left_is_one_short_step() -> None:
    ledger = Ledger(out={2: "gone"})
    plan = plan_of(GlobalSampler(batch_size=4, seed=0), ledger)
    plan.start_round(1)
    assert [step.batch_sizes for step in follow(plan, ledger)] == [{7: 2}]


def test_nothing_is_left_when_all_are_out() -> None:
    ledger = Ledger(out={2: "gone", 7: "gone"})
    plan = plan_of(GlobalSampler(batch_size=4, seed=0), ledger)
    plan.start_round(1)
    assert plan.next_steps() == (None, None)


def test_a_plan_is_that_of_the_ledger_wherever_the_run_goes_on() -> None:
    ledger = Ledger()
    plan = plan_of(GlobalSampler(batch_size=1, seed=0), ledger)
    plan.start_round(1)
    for redrawn in (False, True):
        if redrawn:
            ledger.out[7] = "gone"
            plan.redraw()
        step, ahead = plan.next_steps()
        assert step is not None
        again = plan_of(GlobalSampler(batch_size=1, seed=0), ledger)
        again.resume()
        assert again.next_steps() == (step, ahead)
        ledger.accept(step.batch_sizes, 0.0)
        again.resume()
        assert again.next_steps() == plan.next_steps()


def test_a_sampler_that_asks_for_more_than_is_left_is_refused() -> None:
    ledger = Ledger(out={7: "gone"})
    with pytest.raises(
        ConfigError,
        match=r"plan 1 of round 1, drawn after clients left or came back, asks client 7 for 2 "
        r"examples; it has 0 left\. Let the sampler's schedule depend on the numbers",
    ):
        plan_of(Written(*STEPS), ledger).start_round(1)


class Bare:
    """No Sampler, but has what one needs."""

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        return BatchSchedule.from_steps([num_examples], num_examples)


def test_a_sampler_needs_its_schedule_only() -> None:
    ledger = Ledger(out={7: "gone"})
    plan = plan_of(Bare(), ledger)
    plan.start_round(1)
    assert [step.batch_sizes for step in follow(plan, ledger)] == [{2: 3}]
