"""The table and the figure of `accuracy`."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.confidence import mean_of
from simulations.figure import band, legend, panels, title
from simulations.result_store import Row, Value

_Group = tuple[Value, Value, Value]


def accuracy_table(rows: list[Row]) -> list[Row]:
    """Return a row for each method, number of clients and alpha.

    Accuracies are in per cent, differences to centralized training in points; `low` and
    `high` bound the 90 % interval of the mean difference. Steps and batch sizes are those
    of a round, on average and at most.

    Parameters
    ----------
    rows : list of dict
        Of several seeds, centralized training among them.
    """
    groups = {group: _by_seed(rows, group) for group in _groups(rows)}
    reference = groups[next(iter(groups))]
    table: list[Row] = []
    for (method, clients, alpha), seeds in groups.items():
        finals = {seed: 100 * float(run[-1]["accuracy"]) for seed, run in seeds.items()}
        known = mean_of(list(finals.values()))
        difference = mean_of(
            [
                final - 100 * float(reference[seed][-1]["accuracy"])
                for seed, final in finals.items()
            ]
        )
        rounds = [row for run in seeds.values() for row in run if row["round"]]
        table.append(
            {
                "method": method,
                "clients": clients,
                "alpha": alpha,
                "accuracy": known.mean,
                "sd": known.sd,
                "difference": difference.mean,
                "low": difference.mean - difference.half,
                "high": difference.mean + difference.half,
                "steps": float(np.mean([float(row["steps"]) for row in rounds])),
                "mean_batch": float(np.mean([float(row["mean_batch"]) for row in rounds])),
                "max_batch": max(float(row["max_batch"]) for row in rounds),
                "seeds": " ".join(f"{final:.2f}" for final in finals.values()),
            }
        )
    return table


def accuracy_figure(rows: list[Row]) -> Figure:
    """Draw test accuracy by round, a panel for each number of clients and alpha.

    Parameters
    ----------
    rows : list of dict
        As for `accuracy_table`.
    """
    groups = _groups(rows)
    reference, *others = groups
    clients = sorted({float(group[1]) for group in others})
    alphas = sorted({float(group[2]) for group in others})
    figure, grid = panels(len(alphas), len(clients), x="round", y="test accuracy (%)")
    for line, alpha in zip(grid, alphas, strict=True):
        for axes, number in zip(line, clients, strict=True):
            axes.set_ylim(0, 100)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            title(axes, f"K = {number:.0f}, alpha = {alpha:g}")
            for group in groups:
                if group == reference or group[1:] == (number, alpha):
                    runs = _by_seed(rows, group).values()
                    by_round = [mean_of(values) for values in zip(*map(_curve, runs), strict=True)]
                    band(
                        axes,
                        str(group[0]),
                        range(len(by_round)),
                        [known.mean for known in by_round],
                        [known.half for known in by_round],
                    )
    legend(figure, [axes for line in grid for axes in line])
    return figure


def _groups(rows: Iterable[Row]) -> list[_Group]:
    """Return each method, number of clients and alpha once, in order: the first is CL's."""
    return list(dict.fromkeys((row["method"], row["clients"], row["alpha"]) for row in rows))


def _by_seed(rows: Iterable[Row], group: _Group) -> dict[Value, list[Row]]:
    seeds: dict[Value, list[Row]] = {}
    for row in rows:
        if (row["method"], row["clients"], row["alpha"]) == group:
            seeds.setdefault(row["seed"], []).append(row)
    return seeds


def _curve(run: list[Row]) -> list[float]:
    return [100 * float(row["accuracy"]) for row in run]
