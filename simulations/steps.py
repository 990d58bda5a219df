"""How many optimizer steps a pass over the data takes."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from simulations.confidence import Mean, mean_of
from simulations.figure import band, legend, panels, save, title
from simulations.label_job import LabelJob
from simulations.options import RunSettings, check_all, check_at_least, option
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.samplers import METHODS, check_methods
from simulations.table import table


@dataclass(frozen=True, kw_only=True)
class StepsJob(LabelJob):
    """One round's schedule."""

    columns: ClassVar[tuple[str, ...]] = ("steps", "inflation", "smallest", "mean", "largest")

    def run(self) -> list[Row]:
        """Return one row: steps, steps over ceil(D / B), and effective batch sizes."""
        sizes = self.sampler().schedule(self.num_examples(), 1).effective_batch_sizes
        return [
            {
                "steps": len(sizes),
                "inflation": len(sizes) / -(-self.examples // self.batch_size),
                "smallest": int(sizes.min()),
                "mean": float(sizes.mean()),
                "largest": int(sizes.max()),
            }
        ]


@dataclass(frozen=True, kw_only=True)
class StepsSettings(RunSettings):
    """What `steps` compares."""

    methods: tuple[str, ...] = option(("gpsl", "fpls", "fls"), f"samplers, any of {METHODS}")
    clients: tuple[int, ...] = option(
        (4, 16, 64, 256, 1024), "numbers of clients K", quick=(4, 16, 64, 256)
    )
    alpha: tuple[float, ...] = option((0.1, 1.0, 10.0), "Dirichlet concentrations")
    batch_size: int = option(128, "global batch size B")
    examples: int = option(50_000, "of all clients, in ten balanced classes", quick=10_000)
    seeds: int = option(10, "partitions", quick=3)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("clients", self.clients, lambda clients: clients >= 1, "1 or more")
        check_all("alpha", self.alpha, lambda alpha: 0 < alpha < np.inf, "above 0 and finite")
        for name in ("batch_size", "examples", "seeds"):
            check_at_least(name, getattr(self, name), 1)
        check_methods(self.methods, self.batch_size)


def steps(settings: StepsSettings) -> str:
    """Count the optimizer steps of a round, as the number of clients and their skew grow.

    Global batches of B examples need ceil(D / B) steps. With local batches, a client whose
    data are used up drops out, and the steps that follow are smaller and therefore more:
    the round lasts until the client with the most batches has given its last one.
    """
    jobs = [
        StepsJob(
            method=method,
            clients=clients,
            alpha=alpha,
            batch_size=settings.batch_size,
            examples=settings.examples,
            seed=seed,
        )
        for alpha, clients, method, seed in product(
            settings.alpha, settings.clients, settings.methods, range(settings.seeds)
        )
    ]
    for job in jobs:
        job.check()
    store = ResultStore(settings.out, StepsJob)
    rows = run_jobs(jobs, store, workers=settings.workers)

    found = [
        _found(_of(rows, key))
        for key in product(settings.alpha, settings.clients, settings.methods)
    ]
    save(steps_figure(rows, settings), settings.out / "steps.png")
    store.export(jobs, {"table": found})
    return f"Steps of a round; inflation is steps over ceil(D / B)\n\n{table(found)}"


def _found(rows: list[Row]) -> Row:
    """Return the means over seeds, and the smallest and largest batch of all."""
    means = {name: _mean(rows, name).mean for name in ("steps", "inflation", "mean")}
    return {
        "alpha": rows[0]["alpha"],
        "clients": rows[0]["clients"],
        "method": rows[0]["method"],
        "steps": means["steps"],
        "inflation": means["inflation"],
        "smallest_batch": min(int(row["smallest"]) for row in rows),
        "mean_batch": means["mean"],
        "largest_batch": max(int(row["largest"]) for row in rows),
    }


def steps_figure(rows: list[Row], settings: StepsSettings) -> Figure:
    """Draw the inflation of steps over the number of clients, a panel for each alpha.

    Parameters
    ----------
    rows : list of dict
        Of `StepsJob`.
    settings : StepsSettings
        What they are of.
    """
    figure, [line] = panels(
        1, len(settings.alpha), x="clients K", y="steps of a round / ceil(D / B)"
    )
    for axes, alpha in zip(line, settings.alpha, strict=True):
        title(axes, f"alpha = {alpha:g}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(settings.clients, [str(clients) for clients in settings.clients])
        for method in settings.methods:
            known = [
                _mean(
                    [
                        row
                        for row in rows
                        if (row["alpha"], row["clients"], row["method"])
                        == (alpha, clients, method)
                    ],
                    "inflation",
                )
                for clients in settings.clients
            ]
            means, halves = [each.mean for each in known], [each.half for each in known]
            band(axes, method, settings.clients, means, halves)
    legend(figure, line)
    return figure


def _of(rows: list[Row], key: tuple[float, int, str]) -> list[Row]:
    return [row for row in rows if (row["alpha"], row["clients"], row["method"]) == key]


def _mean(rows: list[Row], name: str) -> Mean:
    return mean_of([float(row[name]) for row in rows])
