import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import FixedLocalSampler, ProportionalLocalSampler


def take_in_turns(num_examples: dict[int, int], sizes: dict[int, int]) -> list[dict[int, int]]:
    """Let every client give its size a step while it has data: the slow oracle."""
    left = {key: count for key, count in sorted(num_examples.items()) if count}
    steps = []
    while left:
        steps.append({key: min(sizes[key], count) for key, count in left.items()})
        left = {key: left[key] - batch for key, batch in steps[-1].items()}
        left = {key: count for key, count in left.items() if count}
    return steps


def test_clients_drop_out_when_their_data_is_used() -> None:
    schedule = FixedLocalSampler(local_batch_size=4).schedule({0: 9, 1: 3, 2: 8}, 1)
    assert list(schedule) == [{0: 4, 1: 3, 2: 4}, {0: 4, 2: 4}, {0: 1}]


@pytest.mark.parametrize(
    ("batch_size", "local"), [(1, 1), (2, 1), (5, 1), (6, 2), (9, 2), (10, 3)]
)
def test_the_global_batch_is_shared_by_clients_with_data_and_rounded_half_up(
    batch_size: int, local: int
) -> None:
    num_examples = {0: 9, 1: 5, 2: 8, 3: 7, 4: 0}
    shared = FixedLocalSampler(batch_size=batch_size).schedule(num_examples, 1)
    assert shared == FixedLocalSampler(local_batch_size=local).schedule(num_examples, 1)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.integers(1, 40), min_size=1), st.integers(1, 50))
def test_schedules_are_those_of_taking_in_turns(num_examples: dict[int, int], size: int) -> None:
    schedule = FixedLocalSampler(local_batch_size=size).schedule(num_examples, 0)
    assert list(schedule) == take_in_turns(num_examples, dict.fromkeys(num_examples, size))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.data())
def test_equal_clients_have_fixed_batches_that_are_proportional(
    num_clients: int, each: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, num_clients * each))
    num_examples = dict.fromkeys(range(num_clients), each)
    fixed = FixedLocalSampler(batch_size=batch_size).schedule(num_examples, 0)
    assert fixed == ProportionalLocalSampler(batch_size).schedule(num_examples, 0)


@pytest.mark.parametrize(("local", "batch"), [(None, None), (4, 8)])
def test_exactly_one_size_must_be_given(local: int | None, batch: int | None) -> None:
    said = (
        f"local_batch_size is {local} and batch_size is {batch}; exactly one of them sizes "
        "the batches: give one, leave out the other"
    )
    with pytest.raises(ConfigError, match=re.escape(said)):
        FixedLocalSampler(local_batch_size=local, batch_size=batch)


def test_a_local_batch_may_exceed_the_data() -> None:
    schedule = FixedLocalSampler(local_batch_size=100).schedule({0: 2, 1: 3}, 0)
    assert list(schedule) == [{0: 2, 1: 3}]
