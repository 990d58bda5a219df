import math

import numpy as np
import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling.real_number import real_number


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3)])
def test_numbers_become_plain_floats(value: object) -> None:
    number = real_number("x", value, at_least=3.0, above=2.0, at_most=3.0)
    assert (number, type(number)) == (3.0, float)


@pytest.mark.parametrize("value", [True, np.True_, "3", None, [3], 3j])
def test_whatever_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="it must be a number: pass a float") as caught:
        real_number("x", value)
    assert str(caught.value).startswith(f"x is {value!r} ({type(value).__name__})")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0.5, "at least 1.0: pass a larger one"),
        (1.0, "above 1.0: pass a larger one"),
        (3.5, "at most 3.0: pass a smaller one"),
        (math.nan, "finite: pass another number"),
        (math.inf, "finite: pass another number"),
        (-math.inf, "finite: pass another number"),
    ],
)
def test_limits_are_quoted(value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^x is {value}; it must be {rule}$"):
        real_number("x", value, at_least=1.0, above=1.0, at_most=3.0)


def test_infinity_may_be_allowed_but_no_number_is_not() -> None:
    assert real_number("x", math.inf, finite=False) == math.inf
    with pytest.raises(ConfigError, match="x is nan; it must be finite"):
        real_number("x", math.nan, finite=False)
