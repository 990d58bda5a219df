"""The law of a batch: against enumeration of tiny pools, and against simulation."""

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling import BatchLaw, BatchSchedule, label_deviations, total_variation

LABELS = {2: [0, 0, 1, 2], 4: [1, 1, 2], 9: [0]}  # client key to the labels of its examples
COUNTS = {key: [labels.count(label) for label in range(3)] for key, labels in LABELS.items()}
POOLED = np.array([3, 3, 2])
STEPS = [{2: 1, 9: 1}, {2: 2, 4: 2}, {4: 1}]
SCHEDULE = BatchSchedule.from_steps(STEPS, {key: len(labels) for key, labels in LABELS.items()})


def enumerated_counts(step: int) -> NDArray[np.int64]:
    """Return a step's label counts for all of the clients' permutations, shape (144, 3)."""
    rows = []
    for orders in product(*(permutations(labels) for labels in LABELS.values())):
        batch: list[int] = []
        for key, order in zip(LABELS, orders, strict=True):
            start = sum(earlier.get(key, 0) for earlier in STEPS[:step])
            batch += order[start : start + STEPS[step].get(key, 0)]
        rows.append([batch.count(label) for label in range(3)])
    return np.array(rows)


def law_of(step: int) -> BatchLaw:
    return list(BatchLaw.of_schedule(SCHEDULE, COUNTS))[step]


def by_count(law: BatchLaw, label: int) -> dict[int, float]:
    counts, probabilities = law.class_law(label)
    return dict(zip(counts.tolist(), probabilities.tolist(), strict=True))


def share_exceeding(distances: NDArray[np.float64], limit: float) -> float:
    return float(np.mean(distances > limit + 1e-12))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_early_and_late_steps_follow_the_enumerated_law(step: int) -> None:
    law, counts = law_of(step), enumerated_counts(step)
    size = sum(STEPS[step].values())
    assert law.batch_size == size
    np.testing.assert_allclose(law.mean_counts, counts.mean(0), atol=1e-14)
    np.testing.assert_allclose(law.covariance, np.cov(counts.T, bias=True), atol=1e-14)
    np.testing.assert_allclose(law.bias, counts.mean(0) / size - POOLED / 8, atol=1e-14)
    for label in range(3):
        seen = Counter(counts[:, label].tolist())
        exact = {count: times / len(counts) for count, times in seen.items()}
        assert {c: p for c, p in by_count(law, label).items() if p} == pytest.approx(exact)
    deviations = np.array([label_deviations(row, POOLED) for row in counts])
    np.testing.assert_allclose(law.expected_class_deviations(), np.abs(deviations).mean(0))
    assert law.expected_total_variation() == pytest.approx(total_variation(deviations).mean())


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("delta", [0.01, 1 / 12, 0.25, 0.5, 0.75, 0.99])
def test_a_class_quantile_is_the_smallest_value_exceeded_that_rarely(
    step: int, delta: float
) -> None:
    law = law_of(step)
    deviations = enumerated_counts(step) / law.batch_size - POOLED / 8
    for label in range(3):
        distances = np.abs(deviations[:, label])
        fitting = [d for d in distances if share_exceeding(distances, d) <= delta + 1e-12]
        assert law.class_quantile(label, delta) == pytest.approx(min(fitting), abs=1e-15)


def test_a_uniform_draw_follows_the_enumerated_law() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    counts = np.array(
        [[order[:4].count(label) for label in range(3)] for order in permutations(labels)]
    )
    law = BatchLaw.of_uniform_draw([3, 2, 1], 4)
    deviations = counts / 4 - np.array([3, 2, 1]) / 6
    np.testing.assert_allclose(law.bias, 0, atol=1e-15)
    np.testing.assert_allclose(law.covariance, np.cov(counts.T, bias=True), atol=1e-14)
    np.testing.assert_allclose(law.expected_class_deviations(), np.abs(deviations).mean(0))
    assert law.expected_total_variation() == pytest.approx(total_variation(deviations).mean())
    assert by_count(law, 0) == pytest.approx({1: 1 / 5, 2: 3 / 5, 3: 1 / 5})


def test_deviations_of_one_size_to_both_sides_are_one_deviation() -> None:
    # 1, 2 or 3 of 4 with probabilities 1/5, 3/5, 1/5: the outer two deviate by 1/4 alike.
    law = BatchLaw.of_uniform_draw([3, 2, 1], 4)
    assert law.class_quantile(0, 0.4) == 0
    assert law.class_quantile(0, 0.39) == 0.25


def test_a_probability_met_exactly_is_not_exceeded_by_rounding() -> None:
    # One of 8 examples, 3 of them of class 0: it deviates by 3/8, or with 3/8 by 5/8.
    law = BatchLaw.of_uniform_draw([3, 5], 1)
    assert law.class_quantile(0, 3 / 8) == 3 / 8
    assert law.class_quantile(0, 3 / 8 - 1e-9) == 5 / 8


def test_the_whole_pool_deviates_by_nothing() -> None:
    law = BatchLaw.of_uniform_draw([3, 2, 1], 6)
    assert law.expected_total_variation() == 0
    assert law.class_quantile(2, 1e-9) == 0
    assert not law.covariance.any()


def test_simulation_agrees_with_the_exact_moments() -> None:
    rng = np.random.default_rng(5)
    counts = rng.multinomial(30, rng.dirichlet([0.5] * 4, size=6))
    table = dict(enumerate(counts))
    schedule = BatchSchedule.from_steps([{0: 3, 1: 12, 3: 1, 5: 30}], dict.fromkeys(table, 30))
    [law] = BatchLaw.of_schedule(schedule, table)
    draws = 40_000
    drawn = law.simulate(draws, rng)
    assert drawn.shape == (draws, 4)
    off = (drawn - law.bias) * law.batch_size
    products = (off[:, :, None] * off[:, None, :]).reshape(draws, 16)
    for sample, exact in (
        (off, np.zeros(4)),
        (products, law.covariance.ravel()),
        (np.abs(drawn), law.expected_class_deviations()),
        (total_variation(drawn)[:, None], np.array([law.expected_total_variation()])),
    ):
        error = sample.std(0) / np.sqrt(draws)
        assert (np.abs(sample.mean(0) - exact) < 5 * error).all()
        assert (error < 0.02 * np.abs(sample).mean(0)).all()  # so the line above has power


def test_simulation_is_a_function_of_the_generator() -> None:
    law = BatchLaw.of_uniform_draw([30, 20], 7)
    first, again, other = (law.simulate(9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_probabilities_of_many_clients_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    table = {key: rng.integers(1, 200, size=3) for key in range(500)}
    steps = [{key: 1 + key % 5 for key in table}]
    [law] = BatchLaw.of_schedule(
        BatchSchedule.from_steps(steps, {key: int(row.sum()) for key, row in table.items()}),
        table,
    )
    counts, probabilities = law.class_law(1)
    assert abs(probabilities.sum() - 1) < 1e-12
    assert probabilities @ counts == pytest.approx(law.mean_counts[1], rel=1e-12)
    variance = probabilities @ (counts - law.mean_counts[1]) ** 2
    assert variance == pytest.approx(law.covariance[1, 1], rel=1e-11)


@pytest.mark.parametrize("label", [-1, 3, 0.0])
def test_an_unknown_class_is_refused(label: int) -> None:
    law = BatchLaw.of_uniform_draw([3, 2, 1], 4)
    for ask in (law.class_law, lambda label: law.class_quantile(label, 0.1)):
        with pytest.raises(ConfigError, match=f"label is {label}.*; it must be .*: pass a"):
            ask(label)


def test_bad_arguments_are_refused() -> None:
    law = BatchLaw.of_uniform_draw([3, 2, 1], 4)
    with pytest.raises(ConfigError, match=r"delta is 1\.0; .* between 0 and 1.*: pass for"):
        law.class_quantile(0, 1.0)
    with pytest.raises(ConfigError, match="num_draws is 0; it must be at least 1: pass a larger"):
        law.simulate(0, np.random.default_rng(0))
    with pytest.raises(
        ConfigError,
        match=r"batch_size is 7, but the pooled data have 6 .* twice: choose batch_size <= 6",
    ):
        BatchLaw.of_uniform_draw([3, 2, 1], 7)
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1: pass a larger"):
        BatchLaw.of_uniform_draw([3, 2, 1], 0)
    with pytest.raises(ConfigError, match=r"pooled data: -1 examples of class 1; .*: correct it"):
        BatchLaw.of_uniform_draw([3, -1], 1)


def test_counts_of_other_clients_are_refused_before_a_law_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"client 2 is in the schedule only; .*: count the"):
        BatchLaw.of_schedule(SCHEDULE, {4: COUNTS[4], 9: COUNTS[9]})
