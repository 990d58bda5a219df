from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.sampling import (
    BalancedSampler,
    ClientCost,
    CostModel,
    GlobalSampler,
    Sampler,
    round_seconds,
)

NUM_EXAMPLES = st.dictionaries(st.integers(0, 2**63), st.integers(1, 60), min_size=1, max_size=12)
EQUAL = dict.fromkeys(range(20), 200)
SKEWED = {key: 1600 // (key + 1) for key in range(20)}


@settings(deadline=None, max_examples=300)
@given(NUM_EXAMPLES, st.data())
def test_every_client_gives_every_step_its_share_rounded_up_or_down(
    num_examples: dict[int, int], data: st.DataObject
) -> None:
    total = sum(num_examples.values())
    size = data.draw(st.integers(1, total))
    schedule = BalancedSampler(size, seed=data.draw(st.integers(0, 5))).schedule(num_examples, 1)
    full, rest = divmod(total, size)
    sizes = [size] * full + [rest] * (rest > 0)
    assert schedule.effective_batch_sizes.tolist() == sizes
    for step, length in zip(schedule, sizes, strict=True):
        for key, count in num_examples.items():
            below, fraction = divmod(length * count, total)
            assert below <= step.get(key, 0) <= below + (fraction > 0)


def test_a_large_client_among_many_small_ones_gives_its_share_too() -> None:
    num_examples = {0: 2000, **{key: 1 + key % 5 for key in range(1, 1000)}}
    total = sum(num_examples.values())
    for step in list(BalancedSampler(64).schedule(num_examples, 1))[:-1]:
        assert abs(step[0] - 64 * 2000 / total) < 1


def test_mean_batch_sizes_are_in_proportion_to_the_data() -> None:
    counts = np.array([23, 7, 2, 1])
    rounds = 4000
    drawn = np.array(
        [
            [[step.get(key, 0) for key in range(4)] for step in schedule]
            for schedule in (
                BalancedSampler(5, seed=2).schedule(dict(enumerate(counts.tolist())), number)
                for number in range(rounds)
            )
        ]
    )
    assert drawn.shape == (rounds, 7, 4)
    means = np.array([[5]] * 6 + [[3]]) * counts / 33
    error = np.sqrt(np.maximum(drawn.var(axis=0), 1e-3) / rounds)
    assert (np.abs(drawn.mean(axis=0) - means) / error).max() < 4.5


def test_clients_meet_one_another_in_all_pairs() -> None:
    sampler = BalancedSampler(2)
    met = {
        tuple(step)
        for server_round in range(30)
        for step in sampler.schedule(dict.fromkeys(range(6), 5), server_round)
    }
    assert met == {(a, b) for b in range(6) for a in range(b)}


def test_no_two_clients_share_all_their_steps() -> None:
    schedule = BalancedSampler(10).schedule(dict.fromkeys(range(200), 5), 1)
    steps_of: dict[int, set[int]] = {key: set() for key in range(200)}
    for number, step in enumerate(schedule):
        for key in step:
            steps_of[key].add(number)
    assert all(len(steps) == 5 for steps in steps_of.values())
    assert len(set(map(frozenset, steps_of.values()))) == 200


def test_rounds_and_seeds_differ() -> None:
    drawn = [
        list(BalancedSampler(10, seed=seed).schedule({0: 33, 1: 41, 2: 46}, server_round))
        for seed in range(3)
        for server_round in range(4)
    ]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


def mean_seconds(sampler: Sampler, num_examples: dict[int, int], cost: CostModel) -> float:
    rounds = (sampler.schedule(num_examples, number) for number in range(1, 5))
    return sum(round_seconds(schedule, cost) for schedule in rounds) / 4


@pytest.mark.parametrize(
    ("num_examples", "per_example", "fixed", "most"),
    [
        (EQUAL, lambda key: 1.0, lambda key: 0.0, 0.7),
        (EQUAL, lambda key: 1.2**key, lambda key: 0.0, 0.8),
        (EQUAL, lambda key: 1.2**key, lambda key: 5.0, 0.85),
        (EQUAL, lambda key: 100.0 if key == 3 else 1.0, lambda key: 0.0, 1.0),
        (SKEWED, lambda key: 1.0, lambda key: 0.0, 1.0),
        (SKEWED, lambda key: key + 1.0, lambda key: 0.0, 0.8),
        (SKEWED, lambda key: (key + 1.0) ** 0.5, lambda key: 0.0, 0.95),
        (SKEWED, lambda key: 0.0, lambda key: 1.0, 1.0),
    ],
)
def test_rounds_take_no_longer_than_those_of_global_sampling_where_computing_dominates(
    num_examples: dict[int, int],
    per_example: Callable[[int], float],
    fixed: Callable[[int], float],
    most: float,
) -> None:
    cost = CostModel({key: ClientCost(per_example(key), fixed(key)) for key in num_examples})
    balanced = mean_seconds(BalancedSampler(64), num_examples, cost)
    shortest = max(num_examples[key] * cost.clients[key].seconds_per_example for key in EQUAL)
    assert balanced >= shortest
    assert balanced <= most * mean_seconds(GlobalSampler(64), num_examples, cost) + 1e-9


def test_slow_clients_with_little_data_are_spread_over_more_steps() -> None:
    num_examples = {0: 60, 1: 3780}
    cost = CostModel({0: ClientCost(0.0, 1.0), 1: ClientCost(0.0, 0.1)})
    balanced = mean_seconds(BalancedSampler(64), num_examples, cost)
    assert balanced == pytest.approx(60.0)
    assert balanced > 1.3 * mean_seconds(GlobalSampler(64), num_examples, cost)
