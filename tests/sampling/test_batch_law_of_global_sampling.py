"""GPSL's steps are uniform draws from the pool, and Serfling's bound holds for them."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from flower_psl.sampling import (
    BatchLaw,
    BatchSchedule,
    DeviationEvent,
    FixedLocalSampler,
    GlobalSampler,
    Pool,
    ProportionalLocalSampler,
    Sampler,
    SerflingBound,
    largest_class_deviation,
    total_variation,
)

POOLED = np.array([120, 80, 40])
BATCH = 48  # of 240 examples: 5 steps a round
ROUNDS = 4_000
# Two divisions of the same pool: a pair of clients alike, and many of one class each.
ALIKE = np.array([[60, 40, 20], [60, 40, 20]])
SKEWED = np.array([[10, 0, 0]] * 12 + [[0, 1, 0]] * 10 + [[0, 70, 0], [0, 0, 40]])
PARTITIONS = {"alike": ALIKE, "skewed": SKEWED}


def draw_round(
    sampler: Sampler, counts: NDArray[np.int64], server_round: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the label counts (T, C) of a round's batches, drawn example by example."""
    num_classes = counts.shape[1]
    left = [rng.permutation(np.repeat(np.arange(num_classes), row)).tolist() for row in counts]
    num_examples = dict(enumerate(counts.sum(1).tolist()))
    batches = []
    for step in sampler.schedule(num_examples, server_round):
        labels: list[int] = []
        for key, size in step.items():
            labels += left[key][:size]
            del left[key][:size]
        batches.append(np.bincount(labels, minlength=num_classes))
    return np.array(batches)


@pytest.fixture(scope="module", params=PARTITIONS)
def gpsl(request: pytest.FixtureRequest) -> NDArray[np.int64]:
    """Label counts of GPSL's batches, shape (rounds, T, C)."""
    rng = np.random.default_rng(7)
    counts = PARTITIONS[request.param]
    sampler = GlobalSampler(BATCH, seed=3)
    return np.array([draw_round(sampler, counts, number, rng) for number in range(ROUNDS)])


def pooled_deviations(batches: NDArray[np.int64]) -> NDArray[np.float64]:
    deviations: NDArray[np.float64] = (
        batches / batches.sum(-1, keepdims=True) - POOLED / POOLED.sum()
    )
    return deviations


def in_event(deviations: NDArray[np.float64], event: DeviationEvent) -> NDArray[np.float64]:
    """Return how far each batch deviates, in the sense of the event."""
    return {
        DeviationEvent.CLASS_ABOVE: deviations[..., 0],
        DeviationEvent.CLASS: np.abs(deviations[..., 0]),
        DeviationEvent.LARGEST_CLASS: largest_class_deviation(deviations),
        DeviationEvent.TOTAL_VARIATION: total_variation(deviations),
    }[event]


def test_the_two_partitions_divide_one_pool() -> None:
    assert [len(counts) for counts in PARTITIONS.values()] == [2, 24]
    assert all(counts.sum(0).tolist() == POOLED.tolist() for counts in PARTITIONS.values())


@pytest.mark.parametrize("step", [0, 3])
def test_every_step_has_the_law_of_a_uniform_draw(gpsl: NDArray[np.int64], step: int) -> None:
    law = BatchLaw.of_uniform_draw(POOLED, BATCH)
    batches = gpsl[:, step]
    off = batches - law.mean_counts
    products = (off[:, :, None] * off[:, None, :]).reshape(ROUNDS, 9)
    distances = total_variation(pooled_deviations(batches))[:, None]
    for sample, exact in (
        (off, np.zeros(3)),
        (products, law.covariance.ravel()),
        (distances, np.array([law.expected_total_variation()])),
    ):
        error = sample.std(0) / np.sqrt(ROUNDS)
        assert (np.abs(sample.mean(0) - exact) < 5 * error).all()
    for label in range(3):
        counts, probabilities = law.class_law(label)
        expected = ROUNDS * probabilities
        seen = np.bincount(batches[:, label], minlength=counts[-1] + 1)[counts]
        common = expected > 10
        both = [np.append(values[common], values[~common].sum()) for values in (seen, expected)]
        assert stats.chisquare(*both).pvalue > 1e-4


def test_given_its_schedule_a_step_of_a_skewed_pool_has_another_law() -> None:
    num_examples = dict(enumerate(SKEWED.sum(1).tolist()))
    schedule = GlobalSampler(BATCH, seed=3).schedule(num_examples, 0)
    uniform = BatchLaw.of_uniform_draw(POOLED, BATCH)
    for law in BatchLaw.of_schedule(schedule, dict(enumerate(SKEWED))):
        # Who has one class only leaves nothing to chance: all of it is in the schedule.
        np.testing.assert_allclose(law.covariance, 0, atol=1e-12)
        assert law.expected_total_variation() == pytest.approx(total_variation(law.bias))
    assert np.diag(uniform.covariance).min() > 1


@pytest.mark.parametrize("step", [0, 1, 2])
def test_laws_given_the_schedule_average_to_that_of_a_uniform_draw(step: int) -> None:
    pool = Pool.of({0: 3, 1: 2, 2: 1})
    table = {0: [2, 1, 0], 1: [0, 1, 1], 2: [1, 0, 0]}
    words = sorted(set(permutations([0, 0, 0, 1, 1, 2])))
    given = [
        list(BatchLaw.of_schedule(BatchSchedule(pool, np.array(word), range(0, 8, 2)), table))[
            step
        ]
        for word in words
    ]
    uniform = BatchLaw.of_uniform_draw([3, 2, 1], 2)
    means = np.array([law.mean_counts for law in given])
    covariance = np.mean([law.covariance for law in given], axis=0) + np.cov(means.T, bias=True)
    np.testing.assert_allclose(np.mean([law.bias for law in given], axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(covariance, uniform.covariance, atol=1e-14)
    np.testing.assert_allclose(
        np.mean([law.expected_class_deviations() for law in given], axis=0),
        uniform.expected_class_deviations(),
    )


@pytest.mark.parametrize("delta", [0.1, 0.02, 0.005])
@pytest.mark.parametrize("event", DeviationEvent)
def test_first_batches_break_serflings_bound_no_more_often_than_it_says(
    gpsl: NDArray[np.int64], event: DeviationEvent, delta: float
) -> None:
    bound = SerflingBound(num_examples=240, num_classes=3, event=event).deviation(BATCH, delta)
    distances = in_event(pooled_deviations(gpsl[:, 0]), event)
    allowed = stats.binom.ppf(1 - 1e-6, ROUNDS, delta)
    assert np.count_nonzero(distances >= bound) <= allowed
    # A bound of half the size would be found out.
    assert np.count_nonzero(distances >= bound / 2) > allowed


def test_exact_quantiles_are_exceeded_as_rarely_as_they_say_but_not_by_far(
    gpsl: NDArray[np.int64],
) -> None:
    law = BatchLaw.of_uniform_draw(POOLED, BATCH)
    deviations = np.abs(pooled_deviations(gpsl[:, 0]))
    for label in range(3):
        quantile = law.class_quantile(label, 0.1)
        above = np.count_nonzero(deviations[:, label] > quantile + 1e-9)
        reached = np.count_nonzero(deviations[:, label] > quantile - 1e-9)
        assert above <= stats.binom.ppf(1 - 1e-6, ROUNDS, 0.1)
        assert reached >= stats.binom.ppf(1e-6, ROUNDS, 0.1)


def test_fixed_local_sampling_is_biased_and_breaks_the_bound_in_every_step() -> None:
    counts = np.array([[100, 0]] * 10 + [[0, 40]] * 10)
    sampler = FixedLocalSampler(local_batch_size=5)
    schedule = sampler.schedule(dict(enumerate(counts.sum(1).tolist())), 0)
    assert schedule.effective_batch_sizes.tolist() == [100] * 8 + [50] * 12
    batches = draw_round(sampler, counts, 0, np.random.default_rng(8))
    bound = SerflingBound(num_examples=1400, num_classes=2)
    for step, law in enumerate(BatchLaw.of_schedule(schedule, dict(enumerate(counts)))):
        # Clients of one class each leave nothing to chance: the bias is all there is.
        np.testing.assert_allclose(law.bias, batches[step] / law.batch_size - [5 / 7, 2 / 7])
        assert total_variation(law.bias) > bound.deviation(law.batch_size, 0.01)


def test_proportional_local_sampling_is_biased_by_rounding_only() -> None:
    table = {0: [10, 10], 1: [60, 0], 2: [0, 20]}
    schedule = ProportionalLocalSampler(20).schedule({0: 20, 1: 60, 2: 20}, 0)
    for law in BatchLaw.of_schedule(schedule, table):
        np.testing.assert_allclose(law.bias, 0, atol=1e-15)
    schedule = ProportionalLocalSampler(8).schedule({0: 20, 1: 60, 2: 20}, 0)
    assert schedule[0] == {0: 2, 1: 5, 2: 2}  # of 1.6, 4.8 and 1.6
    law = next(BatchLaw.of_schedule(schedule, table))
    np.testing.assert_allclose(law.bias, [6 / 9 - 0.7, 3 / 9 - 0.3], atol=1e-15)
