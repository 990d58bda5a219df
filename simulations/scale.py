"""What planning a round takes, from a hundred clients to a million."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from simulations.figure import label, legend, look, panels, save, title
from simulations.options import RunSettings, check_all, check_at_least, option
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.samplers import METHODS, check_methods
from simulations.scale_job import ScaleJob
from simulations.table import table


@dataclass(frozen=True, kw_only=True)
class ScaleSettings(RunSettings):
    """What `scale` plans."""

    methods: tuple[str, ...] = option(
        ("gpsl", "balanced", "fpls", "fls"),
        f"samplers, any of {METHODS}",
        quick=("gpsl",),
    )
    clients: tuple[int, ...] = option(
        (100, 1_000, 10_000, 100_000, 1_000_000),
        "numbers of clients K",
        quick=(100, 1_000, 10_000),
    )
    examples_per_client: int = option(50, "on average")
    batch_size: int = option(128, "global batch size B")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("clients", self.clients, lambda clients: clients >= 1, "1 or more")
        check_at_least("examples_per_client", self.examples_per_client, 1)
        check_at_least("batch_size", self.batch_size, 1)
        check_methods(self.methods, self.batch_size)


def scale(settings: ScaleSettings) -> str:
    """Measure the time and memory that planning a round takes, as clients become many.

    Each plan is made in a process of its own, so that its peak memory is its own, and time
    is the processor's, which other work on the machine does not stretch. The exponent
    is the slope of a line through the points in logarithms, from 10^4 clients if there are
    two such points: 1 is linear growth.
    """
    jobs = [
        ScaleJob(
            method=method,
            clients=clients,
            examples_per_client=settings.examples_per_client,
            batch_size=settings.batch_size,
        )
        for method in settings.methods
        for clients in settings.clients
    ]
    for job in jobs:
        job.check()
    store = ResultStore(settings.out, ScaleJob)
    rows = run_jobs(jobs, store, workers=settings.workers, fresh_process=True)

    exponents = {
        method: growth_exponent([row for row in rows if row["method"] == method])
        for method in settings.methods
    }
    save(scale_figure(rows), settings.out / "scale.png")
    store.export(jobs, {"table": rows, "time_exponents": exponents})
    grown = ", ".join(
        f"{method} {exponent:.2f}" for method, exponent in exponents.items() if exponent
    )
    return f"Planning one round; time grows with the exponents {grown}\n\n{table(rows)}"


def growth_exponent(rows: list[Row]) -> float | None:
    """Return the slope of log(seconds) over log(clients); None for a single point.

    Parameters
    ----------
    rows : list of dict
        Of one method.
    """
    large = [row for row in rows if int(row["clients"]) >= 10_000]
    points = large if len(large) > 1 else rows
    if len(points) < 2:
        return None
    clients, seconds = (
        np.log([float(row[name]) for row in points]) for name in ("clients", "seconds")
    )
    return float(np.polyfit(clients, seconds, 1)[0])


def scale_figure(rows: list[Row]) -> Figure:
    """Draw time and memory over the number of clients.

    Parameters
    ----------
    rows : list of dict
        Of `ScaleJob`.
    """
    figure, [line] = panels(1, 2, x="clients K", y="", share_y=False)
    for axes, (name, text) in zip(
        line, (("seconds", "processor time (s)"), ("memory_mb", "peak memory (MB)")), strict=True
    ):
        title(axes, text)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for method in dict.fromkeys(str(row["method"]) for row in rows):
            points = sorted(
                (int(row["clients"]), float(row[name])) for row in rows if row["method"] == method
            )
            axes.plot(
                *zip(*points, strict=True), label=label(method), marker="o", ms=3, **look(method)
            )
    legend(figure, line)
    return figure
