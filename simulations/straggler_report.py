"""The table and the figures of `stragglers`."""

import numpy as np
from matplotlib.figure import Figure

from simulations.confidence import mean_of
from simulations.figure import band, legend, look, panels, title
from simulations.reached import cost_to_reach
from simulations.result_store import Row


def straggler_table(rows: list[Row], target: float) -> list[Row]:
    """Return a row for each cost model and method: means over seeds.

    `round_s` is the simulated time of a round, `least_s` the least time of one that uses
    every example, and `target_s` the time until the target, of the `reached` seeds that
    reached it ("never" if none did).

    Parameters
    ----------
    rows : list of dict
        Of `StragglerJob`.
    target : float
        Test accuracy, in [0, 1].
    """
    found: list[Row] = []
    for regime, methods in _runs(rows).items():
        for method, runs in methods.items():
            last = [run[-1] for run in runs]
            times = [time for run in runs if (time := _time_to(run, target)) is not None]
            found.append(
                {
                    "regime": regime,
                    "method": method,
                    "round_s": _mean_a_round(last, "time_s"),
                    "least_s": _mean_a_round(last, "least_time_s"),
                    "target_s": float(np.mean(times)) if times else "never",
                    "reached": len(times),
                    "accuracy": float(np.mean([100 * float(row["accuracy"]) for row in last])),
                    "deviation": float(np.mean([float(row["deviation"]) for row in last])),
                }
            )
    return found


def time_figure(rows: list[Row]) -> Figure:
    """Draw test accuracy over simulated time, a panel for each cost model.

    Parameters
    ----------
    rows : list of dict
        Of `StragglerJob`.
    """
    regimes = _runs(rows)
    figure, [line] = panels(1, len(regimes), x="simulated time (s)", y="test accuracy (%)")
    for axes, (regime, methods) in zip(line, regimes.items(), strict=True):
        axes.set_ylim(0, 100)
        title(axes, regime)
        for method, runs in methods.items():
            by_round = list(zip(*runs, strict=True))
            known = [
                mean_of([100 * float(row["accuracy"]) for row in seeds]) for seeds in by_round
            ]
            times = [np.mean([float(row["time_s"]) for row in seeds]) for seeds in by_round]
            band(axes, method, times, [k.mean for k in known], [k.half for k in known])
    legend(figure, line)
    return figure


def trade_off_figure(found: list[Row]) -> Figure:
    """Draw the deviation of batches over the time of a round, a panel for each cost model.

    Parameters
    ----------
    found : list of dict
        The table.
    """
    regimes = list(dict.fromkeys(str(row["regime"]) for row in found))
    figure, [line] = panels(
        1, len(regimes), x="simulated time of a round (s)", y="mean deviation (total variation)"
    )
    for axes, regime in zip(line, regimes, strict=True):
        title(axes, regime)
        points = [row for row in found if row["regime"] == regime]
        swept = sorted(
            (float(row["round_s"]), float(row["deviation"]))
            for row in points
            if row["method"] == "gpsl" or str(row["method"]).startswith("straggler")
        )
        axes.plot(*zip(*swept, strict=True), linewidth=1, **look("straggler"))
        for row in points:
            place = float(row["round_s"]), float(row["deviation"])
            axes.plot(*place, marker="o", ms=4, color=look(str(row["method"]))["color"])
            axes.annotate(
                str(row["method"]), place, (3, 3), textcoords="offset points", fontsize=6
            )
    return figure


def _runs(rows: list[Row]) -> dict[str, dict[str, list[list[Row]]]]:
    """Return the rows of each run by regime and method."""
    runs: dict[str, dict[str, dict[int, list[Row]]]] = {}
    for row in rows:
        methods = runs.setdefault(str(row["regime"]), {})
        seeds = methods.setdefault(str(row["method"]), {})
        seeds.setdefault(int(row["seed"]), []).append(row)
    return {
        regime: {method: list(seeds.values()) for method, seeds in methods.items()}
        for regime, methods in runs.items()
    }


def _time_to(run: list[Row], target: float) -> float | None:
    accuracies, times = ([float(row[name]) for row in run] for name in ("accuracy", "time_s"))
    return cost_to_reach(target, accuracies, times)


def _mean_a_round(last: list[Row], name: str) -> float:
    return float(np.mean([float(row[name]) / int(row["round"]) for row in last]))
