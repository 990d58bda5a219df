"""Simulated time to a target accuracy, where some clients are slow."""

from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import numpy as np

from flower_psl import BatchLaw, ConfigError, Sampler, round_seconds
from simulations.figure import save
from simulations.image_data import NUM_CLASSES
from simulations.one_thread import one_thread
from simulations.options import check_at_least, option
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.samplers import build_sampler, slow_clients
from simulations.speeds import fingerprint, least_seconds, regimes
from simulations.straggler_report import straggler_table, time_figure, trade_off_figure
from simulations.table import table
from simulations.training import COLUMNS
from simulations.training_job import TrainingJob, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class StragglerJob(TrainingJob):
    """One training run, with the time that each cost model says its rounds take.

    Attributes
    ----------
    costs : str
        Which cost models, as `fingerprint` has it.
    cost_file : str
        The file they are from, if any.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *COLUMNS,
        "regime",
        "time_s",
        "least_time_s",
        "deviation",
    )

    costs: str
    cost_file: str = field(compare=False)

    def run(self) -> list[Row]:
        """Train, and return a row a round and cost model.

        `time_s` is the simulated time up to the end of the round, and `least_time_s` the least
        that a method can take that uses every example in each round, in seconds;
        `deviation` is the exact mean total variation of the first round's batches.
        """
        rows = self.training().split(self.sampler(), self.parts())
        num_examples = self.num_examples()
        schedules = [
            self.sampler().schedule(num_examples, number) for number in range(1, self.rounds + 1)
        ]
        labels = self.images().train_labels.numpy()
        # A quota can leave a client with few examples out of a round.
        counts = {
            key: np.bincount(labels[part], minlength=NUM_CLASSES)
            for key, part in enumerate(self.parts())
            if key in schedules[0].client_keys
        }
        laws = BatchLaw.of_schedule(schedules[0], counts)
        deviation = float(np.mean([law.expected_total_variation() for law in laws]))
        found: list[Row] = []
        for regime, cost in regimes(self.cost_file, num_examples).items():
            times = np.cumsum([0.0, *(round_seconds(schedule, cost) for schedule in schedules)])
            least = least_seconds(cost, num_examples)
            for number, (row, time) in enumerate(zip(rows, times.tolist(), strict=True)):
                found.append(
                    row
                    | {
                        "regime": regime,
                        "time_s": time,
                        "least_time_s": number * least,
                        "deviation": deviation,
                    }
                )
        return found

    def sampler(self) -> Sampler:
        """Return the sampler; slow is who is so in any of the cost models."""
        num_examples = self.num_examples()
        models = regimes(self.cost_file, num_examples).values()
        slow = frozenset().union(*(slow_clients(cost, num_examples) for cost in models))
        return build_sampler(self.method, batch_size=self.batch_size, seed=self.seed, slow=slow)


@dataclass(frozen=True, kw_only=True)
class StragglerSettings(TrainingSettings):
    """What `stragglers` compares."""

    methods: tuple[str, ...] = option(
        (
            "gpsl",
            "balanced",
            "fpls",
            "fls",
            "latent-dirichlet:10",
            "quota:0.5",
            "straggler:0.8",
            "straggler:0.6",
            "straggler:0.4",
            "straggler:0.25",
        ),
        "samplers; see accuracy",
        quick=("gpsl", "balanced", "fls", "quota:0.5", "straggler:0.7", "straggler:0.4"),
    )
    clients: int = option(20, "number of clients K", quick=10)
    alpha: float = option(1.0, "Dirichlet concentration")
    rounds: int = option(10, "passes over the data", quick=4)
    seeds: int = option(5, "seeds, of weights, partition and draws, paired", quick=2)
    target: float = option(0.9, "test accuracy to reach, in [0, 1]")
    cost_file: str = option("", "CSV or JSON file of a CostModel; two made-up ones unless given")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_at_least("clients", self.clients, 1)
        if not 0 < self.alpha < np.inf:
            raise ConfigError(
                f"alpha is {self.alpha}; it must be above 0 and finite: give for instance 0.1"
            )
        if not 0 < self.target <= 1:
            raise ConfigError(
                f"target is {self.target}; an accuracy must be in (0, 1]: give for instance 0.9"
            )


def stragglers(settings: StragglerSettings) -> str:
    """Measure the simulated time to a target accuracy, where some clients are slow.

    A step lasts as long as its slowest client, who needs so many seconds an example and so
    many a participation. Unless a file says otherwise, there are two cost models with every
    fifth client ten times slower: "compute", where seconds an example dominate, and
    "latency", where seconds a participation do. While every example is used once a round,
    no round is shorter than `least`, max_k D_k tau_k. Time is gained by spreading batches
    less unevenly or by seating slow clients in fewer steps; `deviation` is its price. A
    quota goes below `least`, and gives slow clients' data less weight.
    """
    costs = fingerprint(settings.cost_file)
    jobs = [
        StragglerJob(
            method=method,
            clients=settings.clients,
            alpha=settings.alpha,
            seed=seed,
            data=settings.data,
            data_path=settings.data_path,
            examples=settings.examples,
            test_examples=settings.test_examples,
            model=settings.model,
            batch_size=settings.batch_size,
            rounds=settings.rounds,
            learning_rate=settings.learning_rate,
            costs=costs,
            cost_file=settings.cost_file,
        )
        for seed, method in product(range(settings.seeds), settings.methods)
    ]
    for job in jobs:
        job.check()
    store = ResultStore(settings.out, StragglerJob)
    rows = run_jobs(jobs, store, workers=settings.workers, prepare=one_thread)

    found = straggler_table(rows, settings.target)
    save(time_figure(rows), settings.out / "time.png")
    save(trade_off_figure(found), settings.out / "trade-off.png")
    models = regimes(settings.cost_file, jobs[0].num_examples())
    used = {regime: cost.to_json() for regime, cost in models.items()}
    store.export(jobs, {"target": settings.target, "table": found, "costs": used})
    return (
        f"Simulated seconds of a round, and until {100 * settings.target:g} % test accuracy;\n"
        f"means over those of {settings.seeds} seeds that reached it\n\n{table(found)}"
    )
