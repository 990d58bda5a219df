from pathlib import Path

import numpy as np
import pytest

from simulations.compare_report import (
    AXES,
    Axis,
    axis_figure,
    best_rates,
    compare_table,
    memory_figure,
)
from simulations.figure import save
from simulations.result_store import Row


def _row(
    method: str, accuracies: list[float], cost: float, rate: float = 0.1, seed: int = 0
) -> Row:
    costs = " ".join(str(cost * number) for number in range(len(accuracies)))
    return {
        "method": method,
        "seed": seed,
        "learning_rate": rate,
        "accuracy": accuracies[-1],
        "device_memory_mb": 3 * cost,
        "accuracy_by_round": " ".join(map(str, accuracies)),
        "megabytes_by_round": costs,
        "seconds_by_round": costs,
        "device_gigaflop_by_round": costs,
    }


ROWS = [
    _row("gpsl", [0.0, 0.5, 0.9], 10.0),
    _row("gpsl", [0.0, 0.7, 0.7], 20.0, seed=1),
    _row("fedavg", [0.0, 0.7, 0.8], 1.0),
    _row("fedavg", [0.0, 0.2, 0.6], 1.0, seed=1),
    _row("centralized", [0.0, 1.0, 1.0], 0.0),
]


def test_the_table_has_means_over_seeds() -> None:
    found = {row["method"]: row for row in compare_table(ROWS, 0.7)}
    assert list(found) == ["gpsl", "fedavg", "centralized"]
    gpsl = found["gpsl"]
    assert gpsl["accuracy"] == pytest.approx(80)
    assert gpsl["sd"] == pytest.approx(200**0.5)
    assert gpsl["MB_a_round"] == 15
    assert gpsl["device_MB"] == 45
    # One seed between rounds 1 and 2, the other in round 1.
    assert gpsl["rounds_to_target"] == pytest.approx((1.5 + 1) / 2)
    assert gpsl["s_to_target"] == pytest.approx((15 + 20) / 2)
    assert found["fedavg"]["MB_to_target"] == "never"
    assert found["centralized"]["GFLOP_a_round"] == 0


def test_each_method_has_the_rate_with_the_best_mean() -> None:
    rows = [
        _row("gpsl", [0.0, 0.9], 1.0, rate=0.1),
        _row("gpsl", [0.0, 0.1], 1.0, rate=0.1, seed=1),
        _row("gpsl", [0.0, 0.6], 1.0, rate=0.2),
        _row("gpsl", [0.0, 0.6], 1.0, rate=0.2, seed=1),
        _row("krum", [0.0, 0.2], 1.0, rate=0.1),
        _row("krum", [0.0, 0.1], 1.0, rate=0.2),
    ]
    assert best_rates(rows) == {"gpsl": 0.2, "krum": 0.1}


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_a_figure_shows_each_method_in_its_panel(axis: Axis, tmp_path: Path) -> None:
    figure = axis_figure(ROWS, axis)
    shown = [[line.get_label() for line in axes.get_lines()] for axes in figure.axes]
    reference = ["centralized"] * (axis is AXES[0])  # it has no devices
    assert shown == [["GPSL", *reference], ["GPSL", "fedavg", *reference]]
    save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_memory_has_a_point_a_method() -> None:
    [left, right] = memory_figure(ROWS).axes
    assert [line.get_label() for line in left.get_lines()] == ["GPSL"]
    points = {
        line.get_label(): np.asarray(line.get_xydata()).ravel().tolist()
        for line in right.get_lines()
    }
    assert points == {"GPSL": [45, pytest.approx(80)], "fedavg": [3, pytest.approx(70)]}
