"""Accuracy and loss by round."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flower_psl.telemetry.figure_style import BLUE, DPI, GRID, TEXT, VERMILION, add_title, lighten
from flower_psl.telemetry.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond this many points, markers hide the line.
_MAX_MARKERS = 40

_Points = list[tuple[int, float]]


def accuracy_figure(rounds: Sequence[RoundRecord]) -> "Figure | None":
    """Return a figure of the accuracy on test data, or None where nothing was evaluated.

    Parameters
    ----------
    rounds : Sequence of RoundRecord
        The run's rounds.

    Returns
    -------
    Figure or None
        One axes with one line: accuracy in percent over the round.
    """
    points = [(r.server_round, 100 * r.accuracy) for r in rounds if r.accuracy is not None]
    if not points:
        return None
    best_round, best = max(points, key=lambda point: point[1])
    last_round, last = points[-1]
    figure, axes = _round_axes("accuracy (%)")
    _plot(axes, points, label="test", colour=BLUE, marker="o")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3.0), min(high, 103.0))
    add_title(
        axes,
        "Accuracy on test data",
        f"best {best:.1f} % (round {best_round}), last {last:.1f} % (round {last_round})",
    )
    return figure


def loss_figure(rounds: Sequence[RoundRecord]) -> "Figure | None":
    """Return a figure of training and test loss, or None where there is no loss at all.

    Parameters
    ----------
    rounds : Sequence of RoundRecord
        The run's rounds.

    Returns
    -------
    Figure or None
        One axes with up to two lines, training and test loss, over the round.
    """
    train = [(r.server_round, r.train_loss) for r in rounds if r.train_loss is not None]
    test = [(r.server_round, r.loss) for r in rounds if r.loss is not None]
    if not train and not test:
        return None
    figure, axes = _round_axes("loss")
    facts = []
    if train:
        _plot(axes, train, label="training (mean of steps)", colour=VERMILION, marker="s")
        facts.append(f"training {train[-1][1]:.4g}")
    if test:
        _plot(axes, test, label="test (after the round)", colour=BLUE, marker="o")
        facts.append(f"test {test[-1][1]:.4g}")
    axes.legend(frameon=False, labelcolor=TEXT)
    add_title(axes, "Loss", "last: " + ", ".join(facts))
    return figure


def _round_axes(ylabel: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("round (0: before training)")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    lighten(axes)
    return figure, axes


def _plot(axes: "Axes", points: _Points, *, label: str, colour: str, marker: str) -> None:
    server_rounds, values = zip(*points, strict=True)
    axes.plot(
        server_rounds,
        values,
        label=label,
        color=colour,
        linewidth=1.8,
        marker=marker if len(points) <= _MAX_MARKERS else "",
        markersize=5,
    )
