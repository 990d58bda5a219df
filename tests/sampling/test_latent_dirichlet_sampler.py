import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flower_psl.errors import ConfigError
from flower_psl.sampling import GlobalSampler, LatentDirichletSampler
from flower_psl.sampling.latent_dirichlet_sampler import _draw


def draw_law(left: list[int], weights: list[float], size: int) -> dict[tuple[int, ...], float]:
    """Enumerate all orders in which examples can be drawn one by one: the slow oracle."""
    owners = [client for client, count in enumerate(left) for _ in range(count)]
    law: Counter[tuple[int, ...]] = Counter()
    for order in permutations(range(len(owners)), size):
        chance, room = 1.0, sum(weights[owner] for owner in owners)
        for example in order:
            chance *= weights[owners[example]] / room
            room -= weights[owners[example]]
        batch = Counter(owners[example] for example in order)
        law[tuple(batch[client] for client in range(len(left)))] += chance  # type: ignore[assignment]
    return dict(law)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_batch_is_drawn_one_by_one_by_weight(size: int) -> None:
    left, weights = [2, 1, 3], [1.0, 4.0, 0.5]
    law = draw_law(left, weights, size)
    assert sum(law.values()) == pytest.approx(1.0)
    rng = np.random.default_rng(size)
    rounds = 4000
    drawn = Counter(
        tuple(_draw(np.array(left), np.log(weights), size, rng).tolist()) for _ in range(rounds)
    )
    assert set(drawn) <= set(law)
    expected = [rounds * chance for chance in law.values()]
    assert stats.chisquare([drawn[batch] for batch in law], expected).pvalue > 1e-3


def test_large_batches_have_the_mean_of_the_law_too() -> None:
    left, weights, size = np.array([90, 60, 150]), np.array([1.0, 3.0, 0.2]), 100
    rng = np.random.default_rng(5)
    slow = []
    for _ in range(2000):
        clocks = rng.standard_exponential(300) / np.repeat(weights, left)
        slow.append(np.bincount(np.repeat(range(3), left)[np.argsort(clocks)[:size]], minlength=3))
    fast = [_draw(left, np.log(weights), size, rng) for _ in range(2000)]
    for client in range(3):
        samples = [[batch[client] for batch in batches] for batches in (slow, fast)]
        assert stats.ks_2samp(*samples).pvalue > 1e-3


def test_weights_may_differ_by_any_factor() -> None:
    rng = np.random.default_rng(0)
    left = np.array([3, 4, 5])
    assert _draw(left, np.array([-1e300, 0.0, -1e5]), 6, rng).tolist() == [0, 4, 2]
    assert _draw(left, np.array([-1e300, 0.0, -1e5]), 12, rng).tolist() == [3, 4, 5]


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.integers(1, 40), min_size=1), st.data())
def test_without_bounds_on_the_concentration_it_is_global_sampling_bit_for_bit(
    num_examples: dict[int, int], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, sum(num_examples.values())))
    sampler = LatentDirichletSampler(batch_size=size, concentration=math.inf, seed=4)
    assert sampler.schedule(num_examples, 2) == GlobalSampler(size, 4).schedule(num_examples, 2)


def test_with_a_large_concentration_it_has_the_law_of_global_sampling() -> None:
    law: Counter[tuple[tuple[tuple[int, int], ...], ...]] = Counter()
    for word in set(permutations("000112")):
        steps = (Counter(map(int, word[start : start + 2])) for start in (0, 2, 4))
        law[tuple(tuple(sorted(step.items())) for step in steps)] += 1
    rounds = 6000
    sampler = LatentDirichletSampler(batch_size=2, concentration=1e12)
    drawn = Counter(
        tuple(tuple(step.items()) for step in sampler.schedule({0: 3, 1: 2, 2: 1}, number))
        for number in range(rounds)
    )
    expected = [rounds * count / 60 for count in law.values()]
    assert stats.chisquare([drawn[joint] for joint in law], expected).pvalue > 1e-3


@pytest.mark.parametrize("concentration", [1e-9, 0.1, 3.0])
def test_the_first_draw_is_in_proportion_to_the_data(concentration: float) -> None:
    sampler = LatentDirichletSampler(batch_size=1, concentration=concentration, seed=3)
    rounds = 3000
    first = Counter(next(iter(sampler.schedule({0: 3, 1: 2, 2: 1}, r)[0])) for r in range(rounds))
    expected = [rounds * share / 6 for share in (3, 2, 1)]
    assert stats.chisquare([first[key] for key in range(3)], expected).pvalue > 1e-3


def test_a_step_has_fewer_clients_the_smaller_the_concentration() -> None:
    num_examples = dict.fromkeys(range(20), 50)
    clients = [
        np.mean(
            [
                len(step)
                for step in LatentDirichletSampler(
                    batch_size=50, concentration=concentration
                ).schedule(num_examples, 1)
            ]
        )
        for concentration in (0.01, 1.0, 10.0, math.inf)
    ]
    assert clients == sorted(clients)
    assert clients[0] < 2.5
    assert clients[-1] > 15


@pytest.mark.parametrize(
    ("concentration", "said"),
    [
        (0.0, "concentration is 0.0; it must be at least 1e-09: pass a larger one"),
        (-1, "concentration is -1.0; it must be at least 1e-09"),
        (math.nan, "concentration is nan; it must be finite"),
        ("1", r"concentration is '1' \(str\); it must be a number: pass a float"),
    ],
)
def test_invalid_concentrations_are_refused(concentration: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LatentDirichletSampler(batch_size=8, concentration=concentration)


def test_invalid_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed is -1; it must be at least 0: pass a larger int"):
        LatentDirichletSampler(batch_size=8, concentration=1.0, seed=-1)
