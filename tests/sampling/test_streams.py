import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import Purpose, derive_seed, generator

WORDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**32 + 1])
POSITIONS = st.lists(WORDS, max_size=4).map(tuple)


def test_purposes_keep_their_numbers_and_share_none() -> None:
    names = ("SCHEDULE", "PERMUTATION", "CLIENT_FORWARD", "SERVER_FORWARD", "CLIENT_DATA")
    assert [int(Purpose[name]) for name in names] == [1, 2, 3, 4, 5]
    assert [int(Purpose[name]) for name in ("EVALUATION", "ENCODING")] == [6, 7]
    assert len(Purpose.__members__) == len({int(purpose) for purpose in Purpose})


def test_streams_stay_what_they_were() -> None:
    assert generator(0, Purpose.SCHEDULE, 1).integers(1000, size=4).tolist() == [
        436,
        852,
        506,
        750,
    ]
    assert derive_seed(7, Purpose.CLIENT_FORWARD, 1, 2**40) == 2695953521716183375


def test_a_stream_begins_anew_at_every_call() -> None:
    first = generator(3, Purpose.PERMUTATION, 1, 2).random(8)
    generator(3, Purpose.PERMUTATION, 9).random(100)
    again = generator(3, Purpose.PERMUTATION, 1, 2).random(8)
    np.testing.assert_array_equal(first, again)


def test_positions_that_naive_seeding_confuses_have_streams_of_their_own() -> None:
    numbers = (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
    places = [
        (seed, purpose, *position)
        for seed in (0, 1, 2**32)
        for purpose in Purpose
        for length in range(4)
        for position in itertools.product(numbers, repeat=length)
    ]
    seeds = {derive_seed(seed, Purpose(purpose), *rest) for seed, purpose, *rest in places}
    assert len(seeds) == len(places)


@settings(deadline=None)
@given(POSITIONS, POSITIONS)
def test_streams_are_equal_only_at_equal_positions(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    draws = [generator(5, Purpose.SCHEDULE, *position).integers(2**63) for position in (a, b)]
    assert (draws[0] == draws[1]) == (a == b)


@settings(deadline=None)
@given(WORDS, POSITIONS)
def test_derived_seeds_fit_a_signed_64_bit_integer(seed: int, position: tuple[int, ...]) -> None:
    assert 0 <= derive_seed(seed, Purpose.SERVER_FORWARD, *position) < 2**63


def test_numpy_integers_are_the_integers_they_are() -> None:
    assert derive_seed(1, Purpose.SCHEDULE, int(np.uint8(3))) == derive_seed(
        np.int64(1),  # type: ignore[arg-type]
        Purpose.SCHEDULE,
        np.uint8(3),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (-1, "-1; it must be at least 0: pass a larger int"),
        (2**64, "18446744073709551616; it must be below 18446744073709551616: pass a smaller"),
        (1.0, "1.0 (float); it must be a whole number: pass an int"),
        (True, "True (bool); it must be a whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(number: int, said: str) -> None:
    with pytest.raises(ConfigError) as in_seed:
        generator(number, Purpose.SCHEDULE)
    assert f"seed is {said}" in str(in_seed.value)
    with pytest.raises(ConfigError) as in_position:
        derive_seed(0, Purpose.SCHEDULE, 4, number)
    assert f"position[1] is {said}" in str(in_position.value)


def test_a_purpose_is_no_number() -> None:
    with pytest.raises(ConfigError, match=r"purpose is 9; .* pass one of SCHEDULE, PERMUTATION"):
        generator(0, 9)  # type: ignore[arg-type]
