import numpy as np
import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling.whole_number import whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_become_plain_ints(value: object) -> None:
    number = whole_number("n", value, at_least=3, below=4)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, [3]])
def test_whatever_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="it must be a whole number: pass an int") as caught:
        whole_number("n", value, at_least=0)
    assert str(caught.value).startswith(f"n is {value!r} ({type(value).__name__})")


@pytest.mark.parametrize(("value", "rule"), [(2, "at least 3"), (5, "below 5")])
def test_limits_are_quoted(value: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"n is {value}; it must be {rule}: pass a"):
        whole_number("n", value, at_least=3, below=5)
