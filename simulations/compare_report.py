"""The table and the figures of `compare`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.compare_records import by_round
from simulations.confidence import mean_of
from simulations.figure import label, legend, look, panels, title
from simulations.reached import cost_to_reach
from simulations.result_store import Row, Value

_SPLIT = ("gpsl", "psl", "splitfed-v1", "splitfed-v2", "sl")
_CENTRALIZED = "centralized"
_IN_BOTH = (_CENTRALIZED, "gpsl")
_PANELS = ("split learning", "federated learning")


@dataclass(frozen=True)
class Axis:
    """What accuracy is set against.

    Attributes
    ----------
    name : str
        In the columns of the table.
    picture : str
        Name of the file.
    column : str
        Of the rows, "" for the rounds themselves.
    label : str
        With the unit.
    """

    name: str
    picture: str
    column: str
    label: str

    def costs(self, row: Row) -> list[float]:
        """Return what a run had cost after each round, round 0 first."""
        if self.column:
            return by_round(row, self.column)
        return [float(number) for number in range(len(by_round(row, "accuracy_by_round")))]


AXES = (
    Axis("rounds", "rounds", "", "round"),
    Axis("MB", "bytes", "megabytes_by_round", "sent in all (MB)"),
    Axis("s", "time", "seconds_by_round", "simulated time (s)"),
    Axis("GFLOP", "work", "device_gigaflop_by_round", "work of a device (GFLOP)"),
)


def best_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Return the learning rate of each method with the best mean final accuracy.

    Parameters
    ----------
    rows : sequence of dict
        One of each method, seed and learning rate.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        rates = found.setdefault(str(row["method"]), {})
        rates.setdefault(float(row["learning_rate"]), []).append(float(row["accuracy"]))
    means = {
        method: {rate: float(np.mean(finals)) for rate, finals in rates.items()}
        for method, rates in found.items()
    }
    return {method: max(rates, key=rates.__getitem__) for method, rates in means.items()}


def compare_table(rows: Sequence[Row], target: float) -> list[Row]:
    """Return a row for each method: means over seeds.

    Learning rate; final accuracy in per cent and its standard deviation; what a round costs
    and a device holds; and what it cost to reach the target, "never" unless all seeds did.

    Parameters
    ----------
    rows : sequence of dict
        One of each method and seed.
    target : float
        Test accuracy, in [0, 1].
    """
    table: list[Row] = []
    for method, runs in _by_method(rows).items():
        known = mean_of([100 * float(run["accuracy"]) for run in runs])
        found: Row = {
            "method": method,
            "rate": runs[0]["learning_rate"],
            "accuracy": known.mean,
            "sd": known.sd,
        }
        for axis in AXES[1:]:
            last = [axis.costs(run)[-1] / (len(axis.costs(run)) - 1) for run in runs]
            found[f"{axis.name}_a_round"] = float(np.mean(last))
        found["device_MB"] = float(np.mean([float(run["device_memory_mb"]) for run in runs]))
        for axis in AXES:
            reached = [
                cost_to_reach(target, by_round(run, "accuracy_by_round"), axis.costs(run))
                for run in runs
            ]
            costs = [cost for cost in reached if cost is not None]
            never = len(costs) < len(runs)
            found[f"{axis.name}_to_target"] = "never" if never else float(np.mean(costs))
        table.append(found)
    return table


def axis_figure(rows: Sequence[Row], axis: Axis) -> Figure:
    """Draw mean accuracy over mean cost, split learning and other methods side by side.

    Parameters
    ----------
    rows : sequence of dict
        One of each method and seed.
    axis : Axis
        The cost.
    """
    figure, line = _two_panels(axis.label, logarithmic=bool(axis.column))
    for method, runs in _by_method(rows).items():
        if axis.column and method == _CENTRALIZED:
            continue  # it has no devices, and the data have cost nothing to gather
        costs = np.mean([axis.costs(run) for run in runs], axis=0)
        accuracies = np.mean([by_round(run, "accuracy_by_round") for run in runs], axis=0)
        # A logarithmic axis has no place for the zero that round 0 costs.
        first = int(bool(axis.column))
        for axes in _panels_of(method, line):
            axes.plot(costs[first:], 100 * accuracies[first:], label=label(method), **look(method))
    legend(figure, line)
    return figure


def memory_figure(rows: Sequence[Row]) -> Figure:
    """Draw final accuracy over what a device holds in memory.

    Parameters
    ----------
    rows : sequence of dict
        One of each method and seed.
    """
    figure, line = _two_panels("memory of a device (MB)", logarithmic=False)
    for method, runs in _by_method(rows).items():
        held = np.mean([float(run["device_memory_mb"]) for run in runs])
        accuracy = np.mean([100 * float(run["accuracy"]) for run in runs])
        for axes in _panels_of(method, line) if method != _CENTRALIZED else ():
            axes.plot(held, accuracy, "o", color=look(method)["color"], label=label(method))
    for axes in line:
        axes.set_xlim(left=0)
    legend(figure, line)
    return figure


def _two_panels(x: str, *, logarithmic: bool) -> tuple[Figure, list[Axes]]:
    figure, [line] = panels(1, 2, x=x, y="test accuracy (%)")
    for axes, name in zip(line, _PANELS, strict=True):
        axes.set_ylim(0, 100)
        title(axes, name)
        if logarithmic:
            axes.set_xscale("log")
    return figure, line


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    methods: dict[Value, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return {str(method): runs for method, runs in methods.items()}


def _panels_of(method: str, line: Sequence[Axes]) -> Sequence[Axes]:
    """Return where a method is drawn; what all are measured against is in both panels."""
    split, others = line
    if method in _IN_BOTH:
        return line
    return [split if method in _SPLIT else others]
