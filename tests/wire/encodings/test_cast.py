import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl import ProtocolError
from flower_psl.wire.encodings.cast import Cast

BF16, FP16 = Cast(torch.bfloat16), Cast(torch.float16)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)
DTYPES = [torch.float32, torch.float64]


def there_and_back(cast: Cast, values: list[float], dtype: torch.dtype) -> list[float]:
    parts = cast.encode(torch.tensor(values, dtype=dtype), 0, None)
    decoded = cast.decode(parts, dtype, 0)
    assert decoded.dtype == dtype
    result: list[float] = decoded.tolist()
    return result


@settings(deadline=None)
@given(FLOATS, st.sampled_from(DTYPES))
def test_bf16_is_right_to_two_and_a_half_digits(values: list[float], dtype: torch.dtype) -> None:
    for value, back in zip(values, there_and_back(BF16, values, dtype), strict=True):
        assert abs(back - value) <= 2**-8 * abs(value) + 1e-40


@settings(deadline=None)
@given(FLOATS, st.sampled_from(DTYPES))
def test_fp16_is_the_nearest_finite_half(values: list[float], dtype: torch.dtype) -> None:
    for value, back in zip(values, there_and_back(FP16, values, dtype), strict=True):
        clamped = max(-65504.0, min(65504.0, value))
        if dtype is torch.float32:
            assert back == float(np.float16(clamped))
        assert abs(back - clamped) <= 2**-11 * abs(clamped) + 2**-25


@pytest.mark.parametrize(
    ("cast", "largest"), [(BF16, torch.finfo(torch.bfloat16).max), (FP16, 65504.0)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_finite_value_becomes_infinite(cast: Cast, largest: float, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    assert there_and_back(cast, [most, -most, 1.0], dtype) == [largest, -largest, 1.0]


@pytest.mark.parametrize("cast", [BF16, FP16])
def test_what_was_not_finite_is_still_seen(cast: Cast) -> None:
    plus, minus, nan, large = there_and_back(
        cast, [math.inf, -math.inf, math.nan, 3.4e38], DTYPES[0]
    )
    assert (plus, minus) == (math.inf, -math.inf)
    assert math.isnan(nan)
    assert math.isfinite(large)


@pytest.mark.parametrize("cast", [BF16, FP16])
def test_two_bytes_travel_for_an_element(cast: Cast) -> None:
    (part,) = cast.encode(torch.rand(3, 5), 1, None)
    assert part.shape == (3, 5)
    assert part.element_size() == cast.itemsize == 2


def test_values_of_another_type_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"torch.float32 values; they travel as .*bfloat16"):
        BF16.decode([torch.zeros(2)], torch.float32, 0)
