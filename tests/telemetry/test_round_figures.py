import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from flower_psl.telemetry import RoundRecord
from flower_psl.telemetry.round_figures import accuracy_figure, loss_figure


def rounds(accuracies: list[float | None]) -> list[RoundRecord]:
    """Give round r the accuracy at r, the test loss r + 1 and, from round 1, the loss r."""
    return [
        RoundRecord(
            server_round=server_round,
            steps=4,
            train_loss=float(server_round) if server_round else None,
            accuracy=accuracy,
            loss=None if accuracy is None else server_round + 1.0,
            seconds=1.0,
        )
        for server_round, accuracy in enumerate(accuracies)
    ]


def only_axes(figure: Figure | None) -> Axes:
    assert figure is not None
    (axes,) = figure.axes
    return axes


def points(line: Line2D) -> NDArray[np.float64]:
    return np.column_stack([line.get_xdata(), line.get_ydata()]).astype(np.float64)


def texts(axes: Axes) -> str:
    return "\n".join([axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)])


def test_accuracy_is_in_percent_at_its_rounds() -> None:
    axes = only_axes(accuracy_figure(rounds([0.1, None, 0.9, 0.8])))
    (line,) = axes.get_lines()
    np.testing.assert_allclose(points(line), [[0, 10], [2, 90], [3, 80]])
    assert "accuracy (%)" == axes.get_ylabel()
    assert "best 90.0 % (round 2), last 80.0 % (round 3)" in texts(axes)


def test_accuracy_axis_stays_near_percentages() -> None:
    low, high = only_axes(accuracy_figure(rounds([0.0, 1.0]))).get_ylim()
    assert -3 <= low < 0 and 100 < high <= 103


def test_never_evaluated_has_no_accuracy_figure() -> None:
    assert accuracy_figure(rounds([None, None])) is None


def test_loss_has_a_line_each() -> None:
    axes = only_axes(loss_figure(rounds([0.1, None, 0.9])))
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["training (mean of steps)", "test (after the round)"]
    train, test = lines.values()
    np.testing.assert_allclose(points(train), [[1, 1], [2, 2]])
    np.testing.assert_allclose(points(test), [[0, 1], [2, 3]])
    assert "last: training 2, test 3" in texts(axes)


def test_loss_without_test_data_has_the_training_line_only() -> None:
    axes = only_axes(loss_figure(rounds([None, None])))
    assert [line.get_label() for line in axes.get_lines()] == ["training (mean of steps)"]


def test_without_any_loss_there_is_no_figure() -> None:
    assert loss_figure(rounds([None])) is None


def test_round_ticks_are_integers() -> None:
    for number in (1, 2, 11, 301):
        figure = accuracy_figure(rounds([0.5] * number))
        ticks = only_axes(figure).get_xticks()
        assert len(ticks) > 0
        assert all(tick == int(tick) for tick in ticks)


def test_markers_give_way_in_long_runs() -> None:
    few, many = (only_axes(accuracy_figure(rounds([0.5] * n))) for n in (40, 41))
    assert few.get_lines()[0].get_marker() == "o"
    assert many.get_lines()[0].get_marker() in ("", "None")
