from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from flower_psl.errors import ConfigError
from flower_psl.sampling import label_deviations, largest_class_deviation, total_variation


def test_deviations_of_a_batch_worked_out_by_hand() -> None:
    deviations = label_deviations([3, 0, 1], [5, 3, 2])
    np.testing.assert_allclose(deviations, [0.25, -0.3, 0.05], atol=1e-15)
    assert total_variation(deviations) == pytest.approx(0.3)
    assert largest_class_deviation(deviations) == pytest.approx(0.3)


def test_many_batches_at_once() -> None:
    deviations = np.array([[[0.5, -0.25, -0.25], [0.0, 0.0, 0.0]]])
    assert total_variation(deviations).tolist() == [[0.5, 0.0]]
    assert largest_class_deviation(-deviations).tolist() == [[0.5, 0.0]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_total_variation_is_the_largest_deviation_of_a_set_of_classes(
    counts: list[tuple[int, int]],
) -> None:
    batch = np.array([first for first, _ in counts]) + 1
    pooled = batch + np.array([rest for _, rest in counts])
    deviations = label_deviations(batch, pooled)
    classes = range(len(counts))
    sets = chain.from_iterable(combinations(classes, size) for size in range(len(counts) + 1))
    largest = max(
        batch[list(some)].sum() / batch.sum() - pooled[list(some)].sum() / pooled.sum()
        for some in sets
    )
    assert total_variation(deviations) == pytest.approx(largest, abs=1e-14)
    assert largest_class_deviation(deviations) <= total_variation(deviations) + 1e-14


@pytest.mark.parametrize(
    ("batch", "pooled", "found", "remedy"),
    [
        ([0, 0], [1, 2], "batch: 0 examples of 2 classes", "leave out"),
        ([1, 0], [1, -2], "pooled data: -2 examples of class 1", "correct it"),
        ([1], [1, 2], "the batch has 1 classes and the pooled data 2", "count the same classes"),
        (
            [1, 3],
            [4, 2],
            "class 1: 3 examples in the batch, 2 in the pooled data; a batch is part of",
            "count the data of all clients",
        ),
    ],
)
def test_a_batch_that_is_not_of_the_pooled_data_is_refused(
    batch: ArrayLike, pooled: ArrayLike, found: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        label_deviations(batch, pooled)
    assert str(caught.value).startswith(found)
    assert remedy in str(caught.value)
