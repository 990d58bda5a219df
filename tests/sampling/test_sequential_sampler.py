from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.sampling import SequentialSampler


def test_clients_take_turns_in_order_of_their_keys() -> None:
    schedule = SequentialSampler(4).schedule({7: 3, 2: 9, 5: 4, 6: 0}, 1)
    assert list(schedule) == [{2: 4}, {2: 4}, {2: 1}, {5: 4}, {7: 3}]


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.integers(1, 40), min_size=1), st.data())
def test_every_step_is_one_client_with_a_whole_batch_or_its_rest(
    num_examples: dict[int, int], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, sum(num_examples.values())))
    steps = [
        {key: min(size, count - start)}
        for key, count in sorted(num_examples.items())
        for start in range(0, count, size)
    ]
    assert list(SequentialSampler(size).schedule(num_examples, 0)) == steps
