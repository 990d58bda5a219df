"""The law of global sampling: against enumeration, and by its exact moments."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from flower_psl.sampling import GlobalSampler

Joint = tuple[tuple[tuple[int, int], ...], ...]


def as_joint(steps: list[dict[int, int]]) -> Joint:
    return tuple(tuple(step.items()) for step in steps)


def draw(sampler: GlobalSampler, num_examples: dict[int, int], rounds: int) -> NDArray[np.float64]:
    """Draw batch sizes of clients 0 to K - 1, shape (rounds, T, K)."""
    return np.array(
        [
            [[step.get(key, 0) for key in num_examples] for step in schedule]
            for schedule in (sampler.schedule(num_examples, r) for r in range(rounds))
        ],
        dtype=np.float64,
    )


def exact_moments(
    counts: NDArray[np.float64], batch: int, steps: int, factor: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means (T, K) and covariances (T, K, T, K) of full steps."""
    total = counts.sum()
    share = counts / total
    means = np.tile(batch * share, (steps, 1))
    spread = np.diag(share) - np.outer(share, share)
    within = batch * (total - batch) / (total - 1) * spread
    across = -(batch**2) / (total - 1) * spread
    same = np.eye(steps)[:, None, :, None]
    return means, factor * (same * within[:, None, :] + (1 - same) * across[:, None, :])


def largest_z_scores(
    drawn: NDArray[np.float64], means: NDArray[np.float64], covs: NDArray[np.float64]
) -> tuple[float, float]:
    """Compare sample means and products with the exact moments, in standard errors."""
    rounds = len(drawn)
    off = (drawn - means).reshape(rounds, -1)
    products = (off[:, :, None] * off[:, None, :]).reshape(rounds, -1)
    scores = [
        np.abs(values.mean(0) - exact) / (values.std(0) / np.sqrt(rounds))
        for values, exact in ((off, 0.0), (products, covs.ravel()))
    ]
    return float(scores[0].max()), float(scores[1].max())


@pytest.mark.parametrize("seed", [0, 1])
def test_small_rounds_follow_the_enumerated_joint_law(seed: int) -> None:
    words = set(permutations("aaabbc"))
    assert len(words) == 60
    law: Counter[Joint] = Counter()
    for word in words:
        steps = (Counter("abc".index(letter) for letter in word[t : t + 2]) for t in (0, 2, 4))
        law[tuple(tuple(sorted(step.items())) for step in steps)] += 1
    rounds = 12_000
    sampler = GlobalSampler(2, seed=seed)
    drawn = Counter(
        as_joint(list(sampler.schedule({0: 3, 1: 2, 2: 1}, server_round)))
        for server_round in range(rounds)
    )
    assert set(drawn) == set(law)
    expected = [rounds * count / 60 for count in law.values()]
    assert min(expected) > 100
    assert stats.chisquare([drawn[joint] for joint in law], expected).pvalue > 1e-3


def test_moments_are_those_of_the_multivariate_hypergeometric_law() -> None:
    counts = np.array([60.0, 25.0, 10.0, 5.0])
    num_examples = {key: int(count) for key, count in enumerate(counts)}
    drawn = draw(GlobalSampler(20, seed=1), num_examples, 8_000)
    means, covs = exact_moments(counts, 20, 5)
    of_means, of_covs = largest_z_scores(drawn, means, covs)
    assert of_means < 4.5  # 20 means
    assert of_covs < 5  # 210 products
    # The test can tell this law from its neighbour, independent multinomial draws.
    multinomial = covs * (100 - 1) / (100 - 20)
    assert largest_z_scores(drawn, means, multinomial)[1] > 8


def test_the_short_last_step_follows_the_same_law() -> None:
    counts = np.array([20.0, 15.0])
    drawn = draw(GlobalSampler(8, seed=2), {0: 20, 1: 15}, 8_000)
    assert drawn.sum(2).tolist() == [[8, 8, 8, 8, 3]] * 8_000
    means, covs = exact_moments(counts, 3, 1)
    assert max(largest_z_scores(drawn[:, 4:], means, covs)) < 4.5


def test_marginals_are_hypergeometric() -> None:
    drawn = draw(GlobalSampler(10, seed=3), {0: 12, 1: 18}, 8_000)[:, 1, 0]
    law = stats.hypergeom(30, 12, 10)
    seen = np.bincount(drawn.astype(int), minlength=11)
    expected = 8_000 * law.pmf(np.arange(11))
    common = expected > 10
    both = [np.append(values[common], values[~common].sum()) for values in (seen, expected)]
    assert stats.chisquare(both[0], both[1]).pvalue > 1e-3


def test_chunks_keep_the_mean_and_multiply_the_covariances_by_the_documented_factor() -> None:
    least, batch = 4, 20
    counts = np.array([40.0, 32.0, 28.0])
    num_examples = {key: int(count) for key, count in enumerate(counts)}
    drawn = draw(GlobalSampler(batch, seed=4, min_client_batch=least), num_examples, 8_000)
    factor = least * (100 - 1) / (100 - least)
    means, covs = exact_moments(counts, batch, 5, factor)
    of_means, of_covs = largest_z_scores(drawn, means, covs)
    assert of_means < 4.5
    assert of_covs < 5
    assert largest_z_scores(drawn, means, covs / factor)[1] > 20
