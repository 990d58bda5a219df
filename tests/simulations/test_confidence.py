import pytest

from simulations.confidence import mean_of


def test_the_interval_is_students() -> None:
    known = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert known.mean == 3.0
    assert known.sd == pytest.approx(2.5**0.5)
    # 2.131847 is the 95 % quantile with 4 degrees of freedom, from tables.
    assert known.half == pytest.approx(2.131847 * 0.5**0.5, rel=1e-6)


def test_one_value_says_nothing_of_the_spread() -> None:
    known = mean_of([7.0])
    assert (known.mean, known.sd, known.half) == (7.0, 0.0, float("inf"))
