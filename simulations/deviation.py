"""How far the labels of a batch are from those of the pooled data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flower_psl import (
    BatchLaw,
    BatchSchedule,
    ConfigError,
    SerflingBound,
    total_variation,
)
from simulations.figure import label, legend, look, panels, save, title
from simulations.label_job import NUM_CLASSES, LabelJob
from simulations.options import RunSettings, check_all, check_at_least, option
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.samplers import METHODS, check_methods
from simulations.table import table

_LAW_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class DeviationJob(LabelJob):
    """Some rounds of batches of one sampler, with one partition."""

    columns: ClassVar[tuple[str, ...]] = (
        "round",
        "step",
        "size",
        "deviation",
        "bias",
        "promised",
        "promised_exact",
        "owed",
        "owed_exact",
    )

    rounds: int
    delta: float

    def run(self) -> list[Row]:
        """Return a row a step.

        `deviation` is the total variation of the batch, `bias` that of its expectation given
        the schedule. A uniform draw of B examples (`promised`), or of as many as the step
        really had (`owed`), stays below the bounds with probability 1 - delta: Serfling's, and
        the exact quantiles.
        """
        labels = self.labels()
        counts = {key: np.bincount(part, minlength=NUM_CLASSES) for key, part in labels.items()}
        pooled = tuple(np.sum(list(counts.values()), axis=0).tolist())
        serfling = SerflingBound(num_examples=self.examples, num_classes=NUM_CLASSES)
        num_examples = {key: len(part) for key, part in labels.items()}
        sampler = self.sampler()
        draws = np.random.default_rng([self.seed, 1])
        rows: list[Row] = []
        for number in range(1, self.rounds + 1):
            schedule = sampler.schedule(num_examples, number)
            batches = _drawn_batches(schedule, labels, draws)
            laws = BatchLaw.of_schedule(schedule, counts)
            for step, (batch, law) in enumerate(zip(batches, laws, strict=True), 1):
                size = law.batch_size
                shares = batch / size - np.array(pooled) / self.examples
                rows.append(
                    {
                        "round": number,
                        "step": step,
                        "size": size,
                        "deviation": float(total_variation(shares)),
                        "bias": float(total_variation(law.bias)),
                        "promised": serfling.deviation(self.batch_size, self.delta),
                        "promised_exact": _exact(pooled, self.batch_size, self.delta),
                        "owed": serfling.deviation(size, self.delta),
                        "owed_exact": _exact(pooled, size, self.delta),
                    }
                )
        return rows


@dataclass(frozen=True, kw_only=True)
class DeviationSettings(RunSettings):
    """What `deviation` compares."""

    methods: tuple[str, ...] = option(("gpsl", "fpls", "fls"), f"samplers, any of {METHODS}")
    clients: tuple[int, ...] = option((10, 100), "numbers of clients K")
    alpha: tuple[float, ...] = option((0.1, 1.0), "Dirichlet concentrations", quick=(0.1,))
    batch_size: tuple[int, ...] = option((64, 256), "global batch sizes B", quick=(64,))
    examples: int = option(10_000, "of all clients, in ten balanced classes", quick=5_000)
    rounds: int = option(5, "passes over the data", quick=2)
    seeds: int = option(5, "partitions", quick=2)
    delta: float = option(0.05, "probability of a larger deviation that is allowed")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("clients", self.clients, lambda clients: clients >= 1, "1 or more")
        check_all("alpha", self.alpha, lambda alpha: 0 < alpha < np.inf, "above 0 and finite")
        check_all("batch_size", self.batch_size, lambda size: size >= 1, "1 or more")
        for name in ("examples", "rounds", "seeds"):
            check_at_least(name, getattr(self, name), 1)
        check_methods(self.methods, self.batch_size[0])
        if not 0 < self.delta < 1:
            raise ConfigError(
                f"delta is {self.delta}; a probability must be between 0 and 1, both excluded: "
                "give for instance 0.05"
            )


def deviation(settings: DeviationSettings) -> str:
    """Compare the deviation of each sampler's batches with Serfling's bound and exact quantiles.

    The deviation of a batch is the total variation distance between the shares of the
    classes in the batch and in the pooled data. A uniform draw of B examples exceeds the
    bounds in a share delta of the steps at most. How often do a sampler's steps, measured by
    the nominal B that was `promised`? And by the size `owed`, that each step really had?
    Where the first fails and the second does not, batches are too small; where both fail,
    they are drawn around the wrong shares. `bias` is the deviation of a batch's expectation
    given the schedule: in GPSL it is chance too, with mean 0, while local schedules repeat
    theirs in every round.
    """
    jobs = [
        DeviationJob(
            method=method,
            clients=clients,
            alpha=alpha,
            batch_size=batch_size,
            seed=seed,
            examples=settings.examples,
            rounds=settings.rounds,
            delta=settings.delta,
        )
        for clients, alpha, batch_size, method, seed in product(
            settings.clients,
            settings.alpha,
            settings.batch_size,
            settings.methods,
            range(settings.seeds),
        )
    ]
    for job in jobs:
        job.check()
    store = ResultStore(settings.out, DeviationJob)
    rows = run_jobs(jobs, store, workers=settings.workers)

    groups = _groups(rows)
    found = [_found(key, group) for key, group in groups.items()]
    for batch_size in settings.batch_size:
        figure = deviation_figure({k: g for k, g in groups.items() if k[2] == batch_size})
        save(figure, settings.out / f"deviation-{batch_size}.png")
    store.export(jobs, {"delta": settings.delta, "table": found})
    return (
        "Deviation of batches in total variation: means over steps, and the share of steps in\n"
        f"% beyond bounds that uniform draws exceed in {100 * settings.delta:g} % at most\n\n"
        f"{table(found)}"
    )


_Key = tuple[int, float, int, str]


def _groups(rows: list[Row]) -> dict[_Key, dict[str, NDArray[np.float64]]]:
    """Return, by K, alpha, B and method, the columns of numbers of all steps."""
    by_key: dict[_Key, list[Row]] = {}
    for row in rows:
        key = (
            int(row["clients"]),
            float(row["alpha"]),
            int(row["batch_size"]),
            str(row["method"]),
        )
        by_key.setdefault(key, []).append(row)
    return {
        key: {name: np.array([float(row[name]) for row in group]) for name in DeviationJob.columns}
        for key, group in by_key.items()
    }


def _found(key: _Key, steps: dict[str, NDArray[np.float64]]) -> Row:
    clients, alpha, batch_size, method = key
    beyond = {
        f"beyond_{name}_%": float(100 * np.mean(steps["deviation"] > steps[name]))
        for name in ("promised", "promised_exact", "owed", "owed_exact")
    }
    return {
        "clients": clients,
        "alpha": alpha,
        "batch_size": batch_size,
        "method": method,
        "mean_size": float(steps["size"].mean()),
        "deviation": float(steps["deviation"].mean()),
        "bias": float(steps["bias"].mean()),
        **beyond,
    }


def deviation_figure(groups: dict[_Key, dict[str, NDArray[np.float64]]]) -> Figure:
    """Draw the share of steps with a larger deviation, a panel for each K and alpha.

    Parameters
    ----------
    groups : dict
        Of one batch size: the columns of `DeviationJob` by K, alpha, B and method.
    """
    clients = sorted({key[0] for key in groups})
    alphas = sorted({key[1] for key in groups})
    figure, grid = panels(
        len(alphas),
        len(clients),
        x="deviation of a batch (total variation)",
        y="share of steps with a larger one (%)",
    )
    for (number, alpha, _, method), steps in groups.items():
        axes = grid[alphas.index(alpha)][clients.index(number)]
        title(axes, f"K = {number}, alpha = {alpha:g}")
        ordered = np.sort(steps["deviation"])
        larger = 100 * (1 - np.arange(1, len(ordered) + 1) / len(ordered))
        axes.step(ordered, larger, where="post", label=label(method), **look(method))
        if method == next(iter(groups))[3]:
            for name, text in (("promised", "Serfling"), ("promised_exact", "exact quantile")):
                axes.axvline(steps[name][0], label=text, linewidth=1, **look(name))
    legend(figure, [axes for line in grid for axes in line])
    return figure


def _drawn_batches(
    schedule: BatchSchedule, labels: dict[int, NDArray[np.int64]], rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the label counts of each step: each client goes through a permutation of its data."""
    order = {key: rng.permutation(part) for key, part in labels.items()}
    used = dict.fromkeys(labels, 0)
    for step in schedule:
        taken = [order[key][used[key] : used[key] + size] for key, size in step.items()]
        yield np.bincount(np.concatenate(taken), minlength=NUM_CLASSES)
        for key, size in step.items():
            used[key] += size


@cache
def _exact(pooled: tuple[int, ...], size: int, delta: float) -> float:
    """Return the deviation that a uniform draw exceeds with probability delta, simulated."""
    draws = BatchLaw.of_uniform_draw(pooled, size).simulate(_LAW_DRAWS, np.random.default_rng(0))
    return float(np.quantile(total_variation(draws), 1 - delta))
