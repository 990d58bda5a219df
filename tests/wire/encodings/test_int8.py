import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire.encodings.int8 import Int8

INT8 = Int8()
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    values = draw(arrays.arrays(np.float64, draw(SHAPES), elements=st.floats(-1e4, 1e4)))
    return torch.tensor(values, dtype=dtype)


def there_and_back(tensor: Tensor, axis: int, seed: int | None = None) -> Tensor:
    new_rng = None if seed is None else partial(np.random.default_rng, seed)
    decoded = INT8.decode(INT8.encode(tensor, axis, new_rng), tensor.dtype, axis)
    assert decoded.dtype == tensor.dtype
    assert decoded.shape == tensor.shape
    return decoded


def channels(tensor: Tensor, axis: int) -> list[list[float]]:
    """Return the values of each channel, one element at a time."""
    if tensor.dim() < 2:
        return [[float(value) for value in tensor.reshape(-1)]]
    found: list[list[float]] = [[] for _ in range(tensor.shape[axis])]
    for index in np.ndindex(*tensor.shape):
        found[index[axis]].append(float(tensor[index]))
    return found


def assert_within(steps: float, tensor: Tensor, decoded: Tensor, axis: int) -> None:
    """Compare channel by channel; what the dtypes themselves round comes on top."""
    rounding = max(torch.finfo(tensor.dtype).eps, torch.finfo(torch.float32).eps)
    for before, after in zip(channels(tensor, axis), channels(decoded, axis), strict=True):
        bound = (
            steps * (max(before) - min(before)) / 255
            + 4 * rounding * max(map(abs, before))
            + 1e-7 * (tensor.dtype is torch.float16)
            + 1e-40
        )
        for x, y in zip(before, after, strict=True):
            assert abs(x - y) <= bound


@settings(deadline=None)
@given(tensors(), st.sampled_from([0, 1]))
def test_the_nearest_number_is_half_a_step_off_at_most(tensor: Tensor, axis: int) -> None:
    assert_within(0.5, tensor, there_and_back(tensor, axis), axis)


@settings(deadline=None)
@given(tensors(), st.sampled_from([0, 1]), st.integers(0, 2**32))
def test_rounding_at_random_is_one_step_off_at_most(tensor: Tensor, axis: int, seed: int) -> None:
    decoded = there_and_back(tensor, axis, seed)
    assert_within(1.0, tensor, decoded, axis)


def test_rounding_at_random_is_right_on_average() -> None:
    # One value of 37.3 steps, between the ends 0 and 255 that make a step 1.
    count, fraction = 200_000, 0.3
    tensor = torch.full((count + 2,), 37 + fraction)
    tensor[0], tensor[-1] = 0, 255
    decoded = there_and_back(tensor, 0, 0)[1:-1]
    assert set(decoded.tolist()) == {37.0, 38.0}
    mean = float(decoded.double().mean())
    deviation = math.sqrt(fraction * (1 - fraction) / count)
    assert abs(mean - (37 + fraction)) < 4 * deviation
    nearest = there_and_back(tensor, 0)[1:-1]
    assert float(nearest.mean()) == 37.0


@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 1e-45, 7.25])
@pytest.mark.parametrize("random", [False, True])
def test_a_constant_channel_is_exact(value: float, random: bool) -> None:
    tensor = torch.rand(4, 3, 5)
    tensor[:, 1] = value
    decoded = there_and_back(tensor, 1, 0 if random else None)
    assert torch.equal(decoded[:, 1], tensor[:, 1])


def test_the_zeros_of_a_relu_are_exact() -> None:
    tensor = torch.randn(8, 3, 5).relu()
    decoded = there_and_back(tensor, 1)
    assert bool((decoded[tensor == 0] == 0).all())


def test_a_channel_does_not_pay_for_another_ones_range() -> None:
    tensor = torch.rand(4, 3)
    tensor[:, 0] *= 1e6
    assert float((there_and_back(tensor, 1) - tensor)[:, 1:].abs().max()) < 0.002
    assert float((there_and_back(tensor, 0) - tensor)[:, 1:].abs().max()) > 0.002


@pytest.mark.parametrize(
    ("shape", "axis", "count"),
    [((), 1, 1), ((5,), 1, 1), ((5,), 0, 1), ((4, 3), 1, 3), ((4, 3, 2), 0, 4), ((4, 1), 1, 1)],
)
def test_a_byte_an_element_and_two_numbers_a_channel_travel(
    shape: tuple[int, ...], axis: int, count: int
) -> None:
    numbers, scale, zero = INT8.encode(torch.rand(shape), axis, None)
    assert (numbers.dtype, numbers.shape) == (torch.uint8, shape)
    assert (scale.dtype, scale.shape) == (zero.dtype, zero.shape) == (torch.float32, (count,))


def test_the_numbers_are_those_of_the_formula() -> None:
    numbers, scale, zero = INT8.encode(torch.tensor([-1.0, 0.0, 0.999, 4.1]), 0, None)
    assert scale.tolist() == [pytest.approx(5.1 / 255)]
    assert zero.tolist() == [-1.0]
    assert numbers.tolist() == [0, 50, 100, 255]


def good_parts() -> list[Tensor]:
    return [torch.zeros(2, 3, dtype=torch.uint8), torch.ones(3), torch.zeros(3)]


@pytest.mark.parametrize(
    ("place", "part", "text"),
    [
        (0, torch.zeros(2, 3), "torch.float32 values; they travel as torch.uint8"),
        (1, torch.ones(2), r"a scale of torch.float32 \(2,\) for .* \(2, 3\); it is .* \(3,\)"),
        (2, torch.ones(3).double(), r"a zero of torch.float64 \(3,\) .*; it is torch.float32"),
        (2, torch.ones(1, 3), r"a zero of torch.float32 \(1, 3\) "),
        (1, torch.tensor([1.0, math.nan, 1.0]), "a scale that is NaN .*; every value .*Look at"),
        (2, torch.tensor([1.0, math.inf, 1.0]), "a zero that is NaN or infinite"),
        (1, torch.tensor([1.0, -0.5, 1.0]), r"a scale of -0.5; a scale is 0 or more"),
    ],
)
def test_parts_that_encoding_does_not_make_are_refused(
    place: int, part: Tensor, text: str
) -> None:
    parts = good_parts()
    assert INT8.decode(parts, torch.float32, 1).shape == (2, 3)
    parts[place] = part
    with pytest.raises(ProtocolError, match=text):
        INT8.decode(parts, torch.float32, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_not_finite_is_refused(value: float, dtype: torch.dtype) -> None:
    parts = INT8.encode(torch.tensor([1.0, value, 2.0], dtype=dtype), 0, None)
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        INT8.decode(parts, dtype, 0)


def test_a_range_beyond_float32_is_refused() -> None:
    huge: Any = [-1e300, 1e300]
    parts = INT8.encode(torch.tensor(huge, dtype=torch.float64), 0, None)
    with pytest.raises(ProtocolError, match="beyond float32"):
        INT8.decode(parts, torch.float64, 0)
