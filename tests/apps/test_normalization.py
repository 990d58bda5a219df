from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from apps.image_classification.normalization import (
    KNOWN,
    UNKNOWN,
    Statistics,
    normalized,
    parse_statistics,
    statistics_for,
)


def test_pixels_are_scaled_shifted_and_divided_by_channel() -> None:
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).view(1, 2, 1, 2)
    result = normalized(pixels, Statistics((0.5, 0.2), (0.25, 0.1)))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-2.0, 2.0, 0.0, 2.0]))
    assert pixels.flatten().tolist() == [0, 255, 51, 102]


def test_one_value_serves_every_channel() -> None:
    pixels = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(normalized(pixels, UNKNOWN), torch.ones(2, 3, 4, 4))


def test_a_number_of_values_that_is_not_that_of_the_channels_is_refused(
    refusal: Callable[..., str],
) -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    text = refusal(normalized, pixels, Statistics((0.1, 0.2), (1.0, 1.0)))
    assert "2 values, but the images have 3 channels" in text
    assert "set normalize-mean and normalize-std" in text


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("uoft-cs/cifar10", "cifar10"),
        ("/some/where/cifar10", "cifar10"),
        ("/some/where/Fashion-MNIST/", "fashion_mnist"),
        ("digits", "digits"),
    ],
)
def test_well_known_data_sets_are_known_by_their_last_name(name: str, known: str) -> None:
    assert statistics_for(name, "", "") == KNOWN[known]


def test_what_is_configured_comes_first_and_what_is_unknown_last() -> None:
    assert statistics_for("mnist", "0.1, 0.2", "1, 2") == Statistics((0.1, 0.2), (1.0, 2.0))
    assert statistics_for("owner/pictures", "", "") == UNKNOWN


def test_the_statistics_of_the_digits_are_right() -> None:
    pixels = np.round(load_digits().images * 255 / 16) / 255
    assert KNOWN["digits"].mean[0] == pytest.approx(pixels.mean(), abs=1e-3)
    assert KNOWN["digits"].std[0] == pytest.approx(pixels.std(), abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ("0.5", "", ["normalize-mean = '0.5'", "1 and 0 values", "give both"]),
        ("", "0.5", ["normalize-std = '0.5'", "0 and 1 values", "give both"]),
        ("0.5,0.5", "0.5", ["2 and 1 values", "one for each channel"]),
        ("half", "0.5", ["normalize-mean = 'half'", "finite numbers", "commas"]),
        ("0.5", "nan", ["normalize-std = 'nan'", "finite numbers", "commas"]),
        ("0.5", "0", ["normalize-std = '0'", "not above 0", "standard deviation"]),
    ],
)
def test_values_that_break_a_rule_are_refused(
    refusal: Callable[..., str], mean: str, std: str, words: list[str]
) -> None:
    text = refusal(parse_statistics, mean, std)
    assert [word for word in words if word not in text] == []
