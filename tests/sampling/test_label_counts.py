import numpy as np
import pytest
from numpy.typing import ArrayLike

from flower_psl.errors import ConfigError
from flower_psl.sampling.label_counts import label_counts


@pytest.mark.parametrize("values", [[2, 0, 1], (2, 0, 1), np.array([2, 0, 1], dtype=np.uint8)])
def test_counts_become_int64(values: ArrayLike) -> None:
    counts = label_counts("client 3", values)
    assert counts.tolist() == [2, 0, 1]
    assert counts.dtype == np.int64


def test_the_argument_is_copied() -> None:
    values = np.array([2, 1])
    label_counts("client 3", values)[0] = 9
    assert values.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("values", "found", "remedy"),
    [
        ([0.5, 1], "label counts of float64 and shape (2,)", "pass integers of shape (classes,)"),
        ([[1, 2]], "label counts of int64 and shape (1, 2)", "pass integers of shape (classes,)"),
        ([True], "label counts of bool and shape (1,)", "pass integers of shape (classes,)"),
        (3, "label counts of int64 and shape ()", "pass integers of shape (classes,)"),
        ([4, -2], "-2 examples of class 1; a count is at least 0", "correct it"),
        (
            [0, 0],
            "0 examples of 2 classes; the label counts must add up to at least 1",
            "leave out",
        ),
        (np.zeros(0, dtype=np.int64), "0 examples of 0 classes", "leave out who has no data"),
        ([5 * 10**8] * 2, "1000000000 examples of 2 classes", "scale the counts"),
        ([2**62] * 3, f"{3 * 2**62} examples of 3 classes", "scale the counts"),
    ],
)
def test_what_is_no_label_counts_is_refused(values: ArrayLike, found: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        label_counts("client 3", values)
    text = str(caught.value)
    assert text.startswith(f"client 3: {found}")
    assert remedy in text
