import pytest

from simulations.reached import cost_to_reach


@pytest.mark.parametrize(
    ("target", "accuracies", "expected"),
    [
        (0.7, [0.0, 0.5, 0.9], 15.0),  # halfway between rounds 1 and 2
        (0.9, [0.0, 0.5, 0.9], 20.0),
        (0.4, [0.6, 0.5, 0.9], 0.0),  # from the beginning
        (0.7, [0.0, 0.5, 0.6], None),
        (0.7, [0.1], None),
    ],
)
def test_rounds_are_joined_by_straight_lines(
    target: float, accuracies: list[float], expected: float | None
) -> None:
    costs = [10.0 * number for number in range(len(accuracies))]
    found = cost_to_reach(target, accuracies, costs)
    assert found == (expected if expected is None else pytest.approx(expected))
