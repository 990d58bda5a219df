import numpy as np
import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling import BatchSchedule
from flower_psl.sampling.label_table import label_table

SCHEDULE = BatchSchedule.from_steps([{7: 2, 2: 1}, {7: 1}], {2: 2, 5: 4, 7: 3})


def test_rows_are_in_the_order_of_the_schedule() -> None:
    counts = {7: [3, 0], 5: [1, 3], 2: [1, 1], 1: [0, 0]}
    assert SCHEDULE.client_keys == (2, 5, 7)
    assert label_table(SCHEDULE, counts).tolist() == [[1, 1], [1, 3], [3, 0]]


@pytest.mark.parametrize(
    ("counts", "found", "remedy"),
    [
        (
            {2: [2], 5: [4], 7: [3], 8: [1]},
            "client 8 is in the label counts only; both must be of the same clients",
            "count the labels of the 3 clients that the schedule was made for",
        ),
        ({2: [2], 7: [3]}, "client 5 is in the schedule only", "count the labels of the 3"),
        ({}, "client 2 is in the schedule only", "count the labels of the 3"),
        ({2: [2], 5: [4], 7: [-3]}, "client 7: -3 examples of class 0", "correct it"),
        (
            {2: [2, 0], 5: [4], 7: [3, 0]},
            "client 5 has counts of 1 classes, client 2 of 2; all need the same classes",
            "give 0 where a client has no example of a class",
        ),
        (
            {2: [1, 1], 5: [3, 1], 7: [1, 1]},
            "client 7 gives 3 examples in the round, but its label counts add up to 2",
            "count all its examples",
        ),
        ({2: [4 * 10**8], 5: [4 * 10**8], 7: [4 * 10**8]}, "pooled data: 1200000000", "scale"),
    ],
)
def test_counts_that_do_not_fit_the_schedule_are_refused(
    counts: dict[int, list[int]], found: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        label_table(SCHEDULE, {key: np.array(row) for key, row in counts.items()})
    text = str(caught.value)
    assert text.startswith(found)
    assert remedy in text
