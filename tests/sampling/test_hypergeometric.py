from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.sampling.hypergeometric import hypergeometric_law


def exact(num_examples: int, num_marked: int, num_drawn: int, x: int) -> float:
    ways = comb(num_marked, x) * comb(num_examples - num_marked, num_drawn - x)
    return float(Fraction(ways, comb(num_examples, num_drawn)))


@settings(deadline=None)
@given(st.data())
def test_small_laws_are_those_of_the_binomial_coefficients(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    marked, drawn = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    lowest, law = hypergeometric_law(total, marked, drawn)
    possible = [x for x in range(drawn + 1) if x <= marked and drawn - x <= total - marked]
    assert list(range(lowest, lowest + len(law))) == possible
    np.testing.assert_allclose(law, [exact(total, marked, drawn, x) for x in possible], rtol=1e-13)


def test_probabilities_of_a_large_pool_keep_their_digits() -> None:
    total, marked, drawn = 10**7, 123_456, 300
    lowest, law = hypergeometric_law(total, marked, drawn)
    assert lowest == 0
    expected = [exact(total, marked, drawn, x) for x in range(40)]
    assert expected[0] > 1e-2 > 1e-24 > expected[-1]
    np.testing.assert_allclose(law[:40], expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("marked", "drawn"), [(3 * 10**6, 128), (10**6, 10**6), (3, 10**7 - 5), (10**7 - 1, 10**6)]
)
def test_large_laws_have_the_sum_mean_and_variance_they_should(marked: int, drawn: int) -> None:
    total = 10**7
    lowest, law = hypergeometric_law(total, marked, drawn)
    share, mean = marked / total, drawn * marked / total
    off = lowest + np.arange(len(law)) - mean
    variance = drawn * share * (1 - share) * (total - drawn) / (total - 1)
    assert abs(law.sum() - 1) < 1e-12
    assert abs(law @ off) < 1e-12 * mean
    assert law @ off**2 == pytest.approx(variance, rel=1e-9)
