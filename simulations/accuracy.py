"""Test accuracy with global sampling, beside that of centralized training."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from flower_psl import ConfigError
from simulations.accuracy_report import accuracy_figure, accuracy_table
from simulations.figure import save
from simulations.one_thread import one_thread
from simulations.options import check_all, check_at_least, option
from simulations.parity import weight_difference
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.table import table
from simulations.training import COLUMNS
from simulations.training_job import TrainingJob, TrainingSettings

CENTRALIZED = "cl"
_PARITY_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class AccuracyJob(TrainingJob):
    """Centralized training knows no clients and no skew; for it, both are 0."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def run(self) -> list[Row]:
        """Train, and return a row a round."""
        if self.method == CENTRALIZED:
            return self.training().centralized()
        return self.training().split(self.sampler(), self.parts())

    def check(self) -> None:
        """Refuse, before anything is trained, what cannot be planned."""
        if self.method != CENTRALIZED:
            super().check()


@dataclass(frozen=True, kw_only=True)
class AccuracySettings(TrainingSettings):
    """What `accuracy` compares with centralized training."""

    clients: tuple[int, ...] = option((32, 128), "numbers of clients K", quick=(10,))
    alpha: tuple[float, ...] = option((0.1, 1.0), "Dirichlet concentrations", quick=(0.1,))
    max_seeds: int = option(20, "more seeds until the intervals are narrow enough", quick=3)
    half_width: float = option(1.0, "of GPSL's 90 % interval that is narrow enough, in points")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("clients", self.clients, lambda clients: clients >= 1, "1 or more")
        check_all("alpha", self.alpha, lambda alpha: 0 < alpha < np.inf, "above 0 and finite")
        check_at_least("max_seeds", self.max_seeds, self.seeds)
        if not self.half_width > 0:
            raise ConfigError(
                f"half_width is {self.half_width}; it must be above 0: give for instance 1"
            )

    def jobs(self, num_seeds: int) -> list[AccuracyJob]:
        """Return all runs with the first seeds."""
        return [
            AccuracyJob(
                method=method,
                clients=clients,
                alpha=alpha,
                seed=seed,
                data=self.data,
                data_path=self.data_path,
                examples=self.examples,
                test_examples=self.test_examples,
                model=self.model,
                batch_size=self.batch_size,
                rounds=self.rounds,
                learning_rate=self.learning_rate,
            )
            for seed in range(num_seeds)
            for method, clients, alpha in self._runs()
        ]

    def _runs(self) -> Iterator[tuple[str, int, float]]:
        yield (CENTRALIZED, 0, 0.0)
        yield from product(self.methods, self.clients, self.alpha)


def accuracy(settings: AccuracySettings) -> str:
    """Compare test accuracy with that of centralized training (CL), over K and alpha.

    Every method starts from the same weights, with the same partition and optimizer, for
    each of several seeds, and differences to CL are taken seed by seed. First, training
    with GPSL is compared with a plain loop on GPSL's own global batches: the weights must
    agree to the last few bits. Then final accuracies are compared: with a 90 % interval
    (Student's t) of the mean paired difference. Seeds are added, by the width of GPSL's
    intervals and not by where they lie, until these are narrow enough.
    """
    jobs = settings.jobs(settings.seeds)
    for job in jobs:
        job.check()
    store = ResultStore(settings.out, AccuracyJob)
    num_examples = len(jobs[-1].images().train_labels)
    parity_steps = min(_PARITY_STEPS, -(-num_examples // settings.batch_size))  # a round at most
    difference = weight_difference(jobs[-1].training(), jobs[-1].parts(), parity_steps)

    num_seeds = settings.seeds
    rows = run_jobs(jobs, store, workers=settings.workers, prepare=one_thread)
    while num_seeds < settings.max_seeds and _widest(rows) > settings.half_width:
        num_seeds += 1
        jobs = settings.jobs(num_seeds)
        rows = run_jobs(jobs, store, workers=settings.workers, prepare=one_thread)

    finals = accuracy_table(rows)
    save(accuracy_figure(rows), settings.out / "accuracy.png")
    summary = {"largest_weight_difference": difference, "parity_steps": parity_steps}
    store.export(jobs, summary | {"table": finals})
    return (
        f"GPSL beside a plain loop on its own global batches: after {parity_steps} steps in "
        f"float64 no weight differs by more than {difference:.1e}\n\n"
        f"Test accuracy in %, and paired differences to CL in points with 90 % intervals:\n\n"
        f"{table(finals)}"
    )


def _widest(rows: list[Row]) -> float:
    """Return half the width of the widest interval of GPSL's difference to CL, in points."""
    return max(
        (
            float(row["high"]) - float(row["difference"])
            for row in accuracy_table(rows)
            if row["method"] == "gpsl"
        ),
        default=0.0,
    )
