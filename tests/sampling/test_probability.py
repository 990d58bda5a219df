import numpy as np
import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling.probability import probability


@pytest.mark.parametrize("value", [0.25, np.float64(0.25), np.float32(0.25)])
def test_numbers_become_plain_floats(value: object) -> None:
    number = probability("delta", value)
    assert (number, type(number)) == (0.25, float)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 5, float("nan"), True, "0.5", None])
def test_whatever_does_not_lie_between_0_and_1_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1, both excluded") as caught:
        probability("delta", value)
    assert str(caught.value).startswith(f"delta is {value!r}; ")
    assert str(caught.value).endswith("pass for instance 0.05")
