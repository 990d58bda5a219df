import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling import BatchSchedule, Pool

STEPS = st.lists(
    st.dictionaries(st.sampled_from([0, 3, 7, 2**63]), st.integers(1, 9), min_size=1),
    min_size=1,
    max_size=20,
)


def add_up(steps: Sequence[dict[int, int]]) -> dict[int, int]:
    totals: dict[int, int] = {}
    for step in steps:
        for key, size in step.items():
            totals[key] = totals.get(key, 0) + size
    return totals


@settings(deadline=None)
@given(STEPS)
def test_a_schedule_says_what_it_was_told(steps: list[dict[int, int]]) -> None:
    totals = add_up(steps)
    schedule = BatchSchedule.from_steps(steps, totals)
    assert list(schedule) == steps
    assert [list(step) for step in schedule] == [sorted(step) for step in steps]
    assert [schedule[t] for t in range(len(schedule))] == steps
    assert [schedule[-t] for t in range(1, len(schedule) + 1)] == steps[::-1]
    assert schedule.totals == totals
    assert schedule.client_keys == tuple(sorted(totals))
    assert schedule.num_examples == sum(totals.values())
    assert schedule.num_steps == len(schedule) == len(steps)
    assert schedule.effective_batch_sizes.dtype == np.int64
    assert schedule.effective_batch_sizes.tolist() == [sum(step.values()) for step in steps]


@pytest.mark.parametrize("bounds", [range(0, 10, 3), [0, 3, 6, 7], array("q", [0, 3, 6, 7])])
def test_a_word_of_single_examples_is_read_step_by_step(bounds: Sequence[int]) -> None:
    letters = np.array([0, 1, 0, 1, 1, 1, 0])
    schedule = BatchSchedule(Pool.of({5: 3, 9: 4}), letters, bounds)
    assert list(schedule) == [{5: 2, 9: 1}, {9: 3}, {5: 1}]
    assert schedule.effective_batch_sizes.tolist() == [3, 3, 1]
    assert schedule.totals == {5: 3, 9: 4}


def test_letters_of_one_client_in_a_step_are_added_up() -> None:
    letters, sizes = np.array([1, 0, 1, 1]), np.array([2, 3, 4, 5])
    schedule = BatchSchedule(Pool.of({0: 3, 1: 11}), letters, [0, 3, 4], sizes)
    assert list(schedule) == [{0: 3, 1: 6}, {1: 5}]
    assert schedule.effective_batch_sizes.tolist() == [9, 5]


def test_a_client_may_give_nothing() -> None:
    schedule = BatchSchedule.from_steps([{0: 2, 1: 0}], {0: 2, 1: 5, 2: 0})
    assert list(schedule) == [{0: 2}]
    assert schedule.totals == {0: 2, 1: 0}


@pytest.mark.parametrize("step", [2, -3])
def test_steps_beyond_the_ends_are_no_steps(step: int) -> None:
    schedule = BatchSchedule.from_steps([{0: 1}, {0: 1}], {0: 2})
    with pytest.raises(IndexError, match=f"step {step} of a schedule of 2 steps"):
        schedule[step]


def test_schedules_are_equal_if_their_steps_are() -> None:
    by_letter = BatchSchedule(Pool.of({0: 2, 1: 9}), np.array([0, 1, 0]), range(0, 5, 2))
    written = BatchSchedule.from_steps([{1: 1, 0: 1}, {0: 1}], {1: 1, 0: 2})
    assert by_letter == written
    assert by_letter != BatchSchedule.from_steps([{0: 1, 1: 1}], {0: 1, 1: 1})
    assert by_letter != BatchSchedule.from_steps([{0: 2}, {1: 1}], {0: 2, 1: 1})
    assert by_letter != [{0: 1, 1: 1}, {0: 1}]
    with pytest.raises(TypeError, match="unhashable"):
        hash(by_letter)


def test_a_schedule_prints_its_first_steps() -> None:
    steps = [dict.fromkeys(range(8), 1)] + [{3: 10}] * 11
    schedule = BatchSchedule.from_steps(steps, add_up(steps))
    assert repr(schedule) == "BatchSchedule(num_steps=12, num_clients=8, num_examples=118)"
    assert str(schedule).splitlines() == [
        "12 steps, 8 clients, 118 examples",
        "step  examples  clients  client: batch size",
        "   0         8        8  0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, ...",
        *(f"   {step}        10        1  3: 10" for step in range(1, 10)),
        " ...",
    ]
    assert str(BatchSchedule.from_steps([{0: 1}], {0: 1})).endswith(
        "   0         1        1  0: 1"
    )


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "the schedule has 0 steps; a round needs at least one: add a step"),
        ([{0: 1}, {}], "step 1 is empty"),
        ([{0: 1}, {1: 0}], "every step needs at least one example: leave the step out"),
        ([{0: 6}], "step 0: client 0 gives 6 examples but has 5; no client can give more"),
        ([{0: 1}, {2: 3}], "step 1: client 2 gives 3 examples but has 0"),
        ([{9: 1}], "step 0: client 9 gives 1 examples but has 0"),
        ([{0: 3}, {0: 3}], "client 0 gives 6 examples in the round but has 5; no example is"),
        ([{0: -1}], "step 0: the batch of client 0 is -1; it must be at least 0: pass a larger"),
        ([{0: 1.0}], "step 0: the batch of client 0 is 1.0 (float); it must be a whole number"),
    ],
)
def test_invalid_steps_are_refused(steps: list[dict[int, int]], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        BatchSchedule.from_steps(steps, {0: 5, 1: 5, 2: 0})


WORD = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("letters", "bounds", "sizes", "said"),
    [
        (WORD, [0, 2], None, "run from letter 0 to 2 of 3; they must cover all letters: begin"),
        (WORD, [1, 3], None, "the steps run from letter 1 to 3 of 3"),
        (WORD, [-1, 3], None, "the steps run from letter -1 to 3 of 3"),
        (WORD, [0, 2, 2, 3], None, "step 1 is empty: it runs from letter 2 to 2 of 3; every step"),
        (WORD, [0, 2, 1, 3], None, "step 1 is empty: it runs from letter 2 to 1 of 3"),
        (WORD, range(0, 9, 3), None, "step 1 is empty: it runs from letter 3 to 6 of 3"),
        (WORD, [0], None, "the schedule has 0 steps"),
        (WORD, [], None, "the schedule has 0 steps"),
        (WORD[:0], [0, 1], None, "step 0 is empty"),
        (WORD + 1, [0, 3], None, "letter 2 stands for no client; letters are places in pool.keys"),
        (WORD - 1, [0, 3], None, "letter -1 stands for no client; letters are places in pool.ke"),
        (WORD / 1, [0, 3], None, "letters is an array of float64 of shape (3,); it must have one"),
        (WORD[None], [0, 1], None, "letters is an array of int64 of shape (1, 3)"),
        (WORD, [0, 3], WORD / 1, "sizes is an array of float64 of shape (3,)"),
        (WORD, [0, 3], WORD[:2], "2 sizes for 3 letters; every letter needs one size: pass"),
        (WORD, [0, 3], WORD, "client 7 gives 0 examples; a client in a step gives at least 1"),
        (WORD, [0, 3], WORD - 1, "client 7 gives -1 examples; a client in a step gives at least"),
        (WORD, [0, 3], WORD + 1, "client 8 gives 4 examples in the round but has 2"),
        (WORD, [0, 3], WORD + 2**62, "client 8 gives 4611686018427387905 examples in the round"),
        (WORD * 0, [0, 3], None, "client 7 gives 3 examples in the round but has 2; no example"),
    ],
)
def test_invalid_words_are_refused(
    letters: NDArray[Any], bounds: Sequence[int], sizes: NDArray[Any] | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        BatchSchedule(Pool.of({7: 2, 8: 2}), letters, bounds, sizes)


def test_arguments_are_left_as_they_were() -> None:
    letters, sizes, bounds = np.array([0, 1]), np.array([2, 2]), [0, 1, 2]
    BatchSchedule(Pool.of({7: 2, 8: 2}), letters, bounds, sizes)
    letters[0], sizes[0] = 1, 1  # still writable
    assert (letters.tolist(), sizes.tolist(), bounds) == ([1, 1], [1, 2], [0, 1, 2])


def test_a_round_may_begin_anywhere_in_the_clients_data() -> None:
    schedule = BatchSchedule.from_steps([{3: 2}, {3: 1, 8: 4}], {3: 5, 8: 4, 9: 0})
    assert schedule.starts is None
    placed = schedule.starting_at({8: 4, 3: 2**40})
    assert placed.starts == {3: 2**40, 8: 4}
    assert list(placed) == list(schedule)
    assert schedule.starts is None
    assert placed != schedule
    assert placed == schedule.starting_at({3: 2**40, 8: 4})
    assert placed != schedule.starting_at({3: 2**40, 8: 5})


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ({3: 0}, "starts are given for the clients [3]; the clients of the schedule are [3, 8]: "),
        ({3: 0, 8: 0, 9: 0}, "the clients [3, 8, 9]; the clients of the schedule are [3, 8]"),
        ({3: 0, 8: -1}, "client 8: the start is -1; it must be at least 0: pass a larger int"),
        ({3: 0, 8: 0.5}, "client 8: the start is 0.5 (float); it must be a whole number"),
    ],
)
def test_invalid_starts_are_refused(starts: dict[int, int], said: str) -> None:
    schedule = BatchSchedule.from_steps([{3: 2, 8: 4}], {3: 5, 8: 4})
    with pytest.raises(ConfigError, match=re.escape(said)):
        schedule.starting_at(starts)
