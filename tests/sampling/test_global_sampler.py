import re
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import GlobalSampler, Purpose, generator

NUM_EXAMPLES = st.dictionaries(st.integers(0, 2**63), st.integers(1, 60), min_size=1, max_size=8)


def chunks_in_turn(num_examples: dict[int, int], least: int) -> list[tuple[int, int]]:
    """Cut every client's data into chunks by np.array_split: the slow oracle."""
    return [
        (key, len(part))
        for key, count in sorted(num_examples.items())
        for part in np.array_split(np.zeros(count), max(1, count // least))
    ]


@settings(deadline=None)
@given(NUM_EXAMPLES, st.data())
def test_every_step_but_the_last_is_exactly_the_batch(
    num_examples: dict[int, int], data: st.DataObject
) -> None:
    total = sum(num_examples.values())
    size = data.draw(st.integers(1, total))
    sizes = GlobalSampler(size).schedule(num_examples, 1).effective_batch_sizes.tolist()
    full, rest = divmod(total, size)
    assert sizes == [size] * full + [rest] * (rest > 0)
    dropped = GlobalSampler(size, drop_last=True).schedule(num_examples, 1)
    assert dropped.effective_batch_sizes.tolist() == [size] * full
    assert list(dropped) == list(GlobalSampler(size).schedule(num_examples, 1))[:full]


def test_the_word_is_shuffled_by_its_stream() -> None:
    word = [3] * 5 + [8] * 2 + [9] * 4
    order = generator(6, Purpose.SCHEDULE, 2).permutation(len(word))
    shuffled = np.array([0] * 5 + [1] * 2 + [2] * 4, dtype=np.uint8)
    generator(6, Purpose.SCHEDULE, 2).shuffle(shuffled)
    steps = [Counter(np.array([3, 8, 9])[shuffled[t : t + 4]].tolist()) for t in range(0, 11, 4)]
    assert sorted(order) == list(range(11))
    assert list(GlobalSampler(4, seed=6).schedule({3: 5, 8: 2, 9: 4}, 2)) == steps


@pytest.mark.parametrize("least", [1, 2])
def test_rounds_and_seeds_differ(least: int) -> None:
    def schedule(seed: int, server_round: int) -> list[dict[int, int]]:
        sampler = GlobalSampler(10, seed=seed, min_client_batch=least)
        return list(sampler.schedule({0: 30, 1: 30, 2: 40}, server_round))

    drawn = [schedule(seed, server_round) for seed in range(3) for server_round in range(5)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


@settings(deadline=None)
@given(NUM_EXAMPLES, st.integers(1, 12), st.data())
def test_chunks_keep_their_promises(
    num_examples: dict[int, int], least: int, data: st.DataObject
) -> None:
    total = sum(num_examples.values())
    size = data.draw(st.integers(2 * least - 1, max(total, 2 * least - 1)))
    if size > total:
        return
    sampler = GlobalSampler(size, min_client_batch=least)
    schedule = sampler.schedule(num_examples, 1)
    sizes = schedule.effective_batch_sizes.tolist()
    assert all(size - 2 * least + 2 <= n <= size for n in sizes[:-1])
    assert 1 <= sizes[-1] <= size
    smallest: dict[int, int] = {}
    for key, chunk in chunks_in_turn(num_examples, least):
        smallest[key] = min(smallest.get(key, chunk), chunk)
        assert chunk <= max(num_examples[key] if num_examples[key] < least else 0, 2 * least - 1)
    for step in schedule:
        for key, batch in step.items():
            assert batch >= smallest[key] >= min(least, num_examples[key])
    kept = list(
        GlobalSampler(size, min_client_batch=least, drop_last=True).schedule(num_examples, 1)
    )
    could_take_any_chunk = sizes[-1] + 2 * least - 1 <= size
    assert kept == list(schedule)[: len(sizes) - could_take_any_chunk]


@settings(deadline=None)
@given(NUM_EXAMPLES, st.integers(2, 12))
def test_steps_of_one_chunk_show_the_chunks(num_examples: dict[int, int], least: int) -> None:
    size = 2 * least - 1  # any two chunks of at least `least` examples are too many
    num_examples = {key: count + least for key, count in num_examples.items()}
    if size > sum(num_examples.values()):
        return
    schedule = GlobalSampler(size, min_client_batch=least).schedule(num_examples, 1)
    shown = [chunk for step in schedule for chunk in step.items()]
    assert len(shown) == len(schedule)
    assert sorted(shown) == sorted(chunks_in_turn(num_examples, least))


def test_steps_are_full_if_the_chunks_divide_everything() -> None:
    sampler = GlobalSampler(12, min_client_batch=4)
    schedule = sampler.schedule({0: 40, 1: 4, 2: 28}, 1)
    assert schedule.effective_batch_sizes.tolist() == [12] * 6
    assert all(batch % 4 == 0 for step in schedule for batch in step.values())


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "kept"),
    [
        ({0: 9, 1: 3}, 9, [9]),
        ({0: 12}, 6, [6, 6]),
        ({0: 9}, 8, [6]),  # a last step of 3 could take any chunk of up to 5
        ({0: 9}, 7, [6, 3]),  # a chunk of 5 would not fit
    ],
)
def test_the_last_step_is_dropped_if_it_could_take_any_chunk(
    num_examples: dict[int, int], batch_size: int, kept: list[int]
) -> None:
    sampler = GlobalSampler(batch_size, min_client_batch=3, drop_last=True)
    assert sampler.schedule(num_examples, 1).effective_batch_sizes.tolist() == kept


@pytest.mark.parametrize("least", [127, 128, 200, 40_000])
def test_large_chunks_keep_their_sizes(least: int) -> None:
    num_examples = {0: 2 * least - 1, 1: 3 * least + 1}
    sampler = GlobalSampler(2 * least - 1, min_client_batch=least)
    sizes = sampler.schedule(num_examples, 1).effective_batch_sizes.tolist()
    assert sorted(sizes) == [least, least, least + 1, 2 * least - 1]


def test_chunks_are_shuffled_over_the_whole_round() -> None:
    sampler = GlobalSampler(40, min_client_batch=4)
    firsts = [sampler.schedule({0: 200, 1: 200}, server_round)[0] for server_round in range(50)]
    assert sum(set(step) == {0, 1} for step in firsts) > 45


@pytest.mark.parametrize(
    ("num_clients", "letter_bytes"), [(10, 1), (300, 2), (70_000, 4)], ids=["1", "2", "4"]
)
@pytest.mark.parametrize("least", [1, 4])
def test_memory_is_a_few_bytes_an_example(num_clients: int, letter_bytes: int, least: int) -> None:
    num_examples = dict.fromkeys(range(num_clients), 2_000_000 // num_clients)
    total = sum(num_examples.values())
    sampler = GlobalSampler(128, min_client_batch=least)
    tracemalloc.start()
    schedule = sampler.schedule(num_examples, 1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert schedule.num_examples == total
    chunk_bytes = letter_bytes if least == 1 else (letter_bytes + 1) / least
    steps_bytes = 0 if least == 1 else 10 * len(schedule)
    assert kept < chunk_bytes * total + steps_bytes + 40 * num_clients + 20_000
    most = 100 * num_clients + 1_000_000 if least > 1 else 40 * num_clients + 200_000
    assert peak < chunk_bytes * total + most
    assert peak < 4 * total + 40 * num_clients + 200_000


def test_a_schedule_of_many_clients_has_every_example_once() -> None:
    num_examples = {key: 1 + key % 3 for key in range(70_000)}
    assert GlobalSampler(1000).schedule(num_examples, 1).totals == num_examples
    chunked = GlobalSampler(1000, min_client_batch=2).schedule(num_examples, 1)
    assert chunked.totals == num_examples


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0: pass a larger int"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be below"),
        ({"seed": 0.5}, "seed is 0.5 (float); it must be a whole number"),
        ({"drop_last": 1}, "drop_last is 1; it must be True or False"),
        ({"min_client_batch": 0}, "min_client_batch is 0; it must be at least 1"),
        (
            {"min_client_batch": 6},
            "batch_size is 10 with min_client_batch 6; a chunk can have 2 * 6 - 1 examples and "
            "must fit into a step: choose batch_size >= 11 or min_client_batch <= 5",
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        GlobalSampler(10, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [9, 10])
def test_the_limits_of_min_client_batch_are_sharp(batch_size: int) -> None:
    sampler = GlobalSampler(batch_size, min_client_batch=5)
    assert sampler.schedule({0: 9, 1: 9}, 0).effective_batch_sizes.tolist() == [9, 9]
