from fractions import Fraction
from math import floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.sampling import ProportionalLocalSampler


def test_batches_are_in_proportion_to_the_data() -> None:
    schedule = ProportionalLocalSampler(10).schedule({0: 50, 1: 30, 2: 20}, 1)
    assert list(schedule) == [{0: 5, 1: 3, 2: 2}] * 10


def test_the_smallest_batch_is_one_example() -> None:
    first = ProportionalLocalSampler(4).schedule({0: 1000, 1: 2}, 1)[0]
    assert first == {0: 4, 1: 1}


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.integers(1, 500), min_size=1, max_size=9), st.data())
def test_rounding_is_half_up(num_examples: dict[int, int], data: st.DataObject) -> None:
    total = sum(num_examples.values())
    batch_size = data.draw(st.integers(1, total))
    first = ProportionalLocalSampler(batch_size).schedule(num_examples, 0)[0]
    for key, count in num_examples.items():
        share = Fraction(batch_size * count, total)
        assert first[key] == max(1, floor(share + Fraction(1, 2)))


@pytest.mark.parametrize("one_less", [0, 1])
def test_rounding_is_exact_beyond_the_integers_of_floats(one_less: int) -> None:
    # The share of client 0 is 2**30 + 1/2 to the last example, or a hair below it.
    most = 2**31 + 1 - one_less
    num_examples = {0: most, 1: 2**32 - 1, 2: 2**32 + 2**32 - most - (2**32 - 1)}
    total = sum(num_examples.values())
    assert total == 2**33
    schedule = ProportionalLocalSampler(2**32).schedule(num_examples, 0)
    assert schedule[0][0] == 2**30 + (1 - one_less)
