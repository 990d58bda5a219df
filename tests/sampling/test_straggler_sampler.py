import math
import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flower_psl.errors import ConfigError
from flower_psl.sampling import (
    ClientCost,
    CostModel,
    GlobalSampler,
    StragglerSampler,
    round_seconds,
)

COUNTS = st.integers(0, 40)


@settings(deadline=None)
@given(st.dictionaries(COUNTS, st.integers(1, 40), min_size=1), st.integers(0, 9), st.data())
def test_full_participation_is_global_sampling_bit_for_bit(
    num_examples: dict[int, int], seed: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, sum(num_examples.values())))
    slow = data.draw(st.sets(st.sampled_from(sorted(num_examples))))
    sampler = StragglerSampler(batch_size=size, participation=1.0, slow=slow, seed=seed)
    assert sampler.schedule(num_examples, 3) == GlobalSampler(size, seed).schedule(num_examples, 3)


@settings(deadline=None)
@given(st.lists(COUNTS, max_size=4), st.lists(COUNTS, max_size=4), st.integers(1, 9), st.data())
def test_slow_clients_are_in_their_share_of_the_steps(
    slow: list[int], fast: list[int], size: int, data: st.DataObject
) -> None:
    num_examples = dict(enumerate([*slow, *fast]))
    total = sum(num_examples.values())
    if size > total:
        return
    full = total // size
    fewest = -(-sum(slow) // size)
    if fewest > full:
        return
    chosen = data.draw(st.integers(max(1, fewest), full))
    slow_keys = set(range(len(slow)))
    sampler = StragglerSampler(batch_size=size, participation=chosen / full, slow=slow_keys)
    schedule = sampler.schedule(num_examples, data.draw(st.integers(0, 9)))
    sizes = [size] * full + [total % size] * (total % size > 0)
    assert schedule.effective_batch_sizes.tolist() == sizes
    assert schedule.totals == {key: count for key, count in num_examples.items() if count}
    with_slow = sum(not slow_keys.isdisjoint(step) for step in schedule)
    assert with_slow <= (chosen if chosen < full else len(schedule))


def test_the_share_of_the_steps_is_not_rounded_up_for_nothing() -> None:
    assert 0.07 * 100 > 7
    sampler = StragglerSampler(batch_size=2, participation=0.07, slow=[0])
    schedule = sampler.schedule({0: 14, 1: 186}, 1)
    assert [step[0] for step in schedule if 0 in step] == [2] * 7


def test_small_rounds_follow_the_enumerated_joint_law() -> None:
    law: Counter[tuple[tuple[tuple[int, int], ...], ...]] = Counter()
    for steps in combinations(range(3), 2):
        open_seats = [seat for step in steps for seat in (2 * step, 2 * step + 1)]
        for slow in combinations(open_seats, 2):
            for other in set(range(6)) - set(slow):
                word = [0 if seat in slow else 2 if seat == other else 1 for seat in range(6)]
                counted = (Counter(word[start : start + 2]) for start in (0, 2, 4))
                law[tuple(tuple(sorted(step.items())) for step in counted)] += 1
    assert law.total() == 72
    rounds = 9000
    sampler = StragglerSampler(batch_size=2, participation=2 / 3, slow=[0], seed=1)
    drawn = Counter(
        tuple(tuple(step.items()) for step in sampler.schedule({0: 2, 1: 3, 2: 1}, number))
        for number in range(rounds)
    )
    assert set(drawn) <= set(law)
    expected = [rounds * count / 72 for count in law.values()]
    assert stats.chisquare([drawn[joint] for joint in law], expected).pvalue > 1e-3


def test_the_cost_model_says_who_is_slow() -> None:
    fixed = {0: 1.0, 1: 1.5, 2: 2.0, 3: 3.0, 4: 3.5, 5: 90.0}
    cost = CostModel({key: ClientCost(9.0, seconds) for key, seconds in fixed.items()})
    num_examples = {0: 5, 1: 5, 2: 5, 3: 5, 4: 5, 5: 0}

    def slow(factor: float) -> frozenset[int]:
        sampler = StragglerSampler(batch_size=5, participation=0.5, cost=cost, slow_factor=factor)
        return sampler.slow_clients(num_examples)

    assert [slow(factor) for factor in (1.0, 1.5, 1.7, 1.75)] == [{3, 4}, {4}, {4}, set()]
    assert slow(1.0) == StragglerSampler(
        batch_size=5, participation=0.5, slow=[4, 3]
    ).slow_clients(num_examples)


@pytest.mark.parametrize(("participation", "most"), [(0.6, 0.7), (0.35, 0.48), (0.25, 0.39)])
def test_rounds_that_fixed_seconds_dominate_become_shorter(
    participation: float, most: float
) -> None:
    num_examples = dict.fromkeys(range(20), 200)
    cost = CostModel({key: ClientCost(0.001, 1.0 if key < 4 else 0.1) for key in num_examples})
    seconds = [
        sum(
            round_seconds(
                StragglerSampler(batch_size=100, participation=phi, cost=cost).schedule(
                    num_examples, number
                ),
                cost,
            )
            for number in range(3)
        )
        for phi in (participation, 1.0)
    ]
    estimate = participation + (1 - participation) * 0.1
    assert seconds[0] / seconds[1] == pytest.approx(estimate, rel=0.07)
    assert seconds[0] <= most * seconds[1]


def test_slow_clients_that_do_not_fit_are_refused_with_what_would_do() -> None:
    num_examples = {0: 33, 1: 66}

    def schedule(participation: float) -> int:
        sampler = StragglerSampler(batch_size=10, participation=participation, slow=[0])
        return len(sampler.schedule(num_examples, 0))

    with pytest.raises(ConfigError) as caught:
        schedule(0.33)
    assert str(caught.value) == (
        "participation is 0.33, but the slow clients have 33 of 99 examples; they must fit into 3 "
        "of 9 full steps of 10, 30 seats: choose participation >= 0.4445"
    )
    assert schedule(0.4445) == 10
    everybody = StragglerSampler(batch_size=10, participation=0.9, slow=[0, 1])
    with pytest.raises(ConfigError, match=r"99 of 99 examples.*: choose participation = 1$"):
        everybody.schedule(num_examples, 0)


COST = CostModel({0: ClientCost(1.0)})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "cost is None and slow is None; exactly one of them says who is slow: give one"),
        ({"slow": [], "cost": COST}, "exactly one of them says who is slow: give one, leave out"),
        ({"slow": [], "participation": 0}, "participation is 0.0; it must be above 0.0: pass"),
        ({"slow": [], "participation": 1.5}, "participation is 1.5; it must be at most 1.0: pass"),
        ({"slow": [], "participation": "all"}, "participation is 'all' (str); it must be a numb"),
        ({"cost": COST, "slow_factor": 0.5}, "slow_factor is 0.5; it must be at least 1.0: pass"),
        ({"cost": COST, "slow_factor": math.inf}, "slow_factor is inf; it must be finite"),
        ({"slow": [-1]}, "slow is -1; it must be at least 0: pass a larger int"),
        ({"slow": [], "seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        StragglerSampler(**{"batch_size": 8, "participation": 0.5, **arguments})


def test_other_clients_than_there_are_are_refused() -> None:
    named = StragglerSampler(batch_size=2, participation=1.0, slow=[5, 0, 7])
    with pytest.raises(ConfigError, match=r"slow names the clients \[5, 7\], which .* \[0, 1\]: "):
        named.schedule({0: 5, 1: 5}, 0)
    modelled = StragglerSampler(batch_size=2, participation=1.0, cost=COST)
    with pytest.raises(ConfigError, match="no cost for the clients 1;"):
        modelled.schedule({0: 5, 1: 5}, 0)
