"""All methods on the same data, from the same weights, with the same passes over the data."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np

from flower_psl import ConfigError, PslError
from simulations.compare_records import COLUMNS, Machines, read_run
from simulations.compare_report import (
    AXES,
    axis_figure,
    best_rates,
    compare_table,
    memory_figure,
)
from simulations.figure import save
from simulations.flower_federation import RunConfig
from simulations.flower_simulation import FlowerSimulation
from simulations.options import RunSettings, check_all, check_at_least, check_one_of, option
from simulations.result_store import ResultStore
from simulations.table import table

METHODS = (
    *("gpsl", "psl", "splitfed-v1", "splitfed-v2", "sl", "local-only", "centralized"),
    *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"),
    *("fedmedian", "fedtrimmedavg", "krum"),
)
"""Of the image-classification app, by its names."""

_APP = Path(__file__).parent.parent
_SECONDS_A_ROUND = 600.0


@dataclass(frozen=True, kw_only=True)
class CompareKey:
    """A method's run with one seed, in one of the runs of the app."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    method: str
    seed: int
    clients: int
    alpha: float
    data: str
    data_path: str = field(compare=False)  # the same images, wherever they lie
    examples: int
    model: str
    batch_size: int
    rounds: int
    learning_rate: float
    device_gigaflops: float
    server_gigaflops: float
    device_megabytes: float
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class CompareSettings(RunSettings):
    """What `compare` compares, on what, and what simulated time is made of."""

    workers: int = option(2, "processes that play the devices, of one torch thread each")
    methods: tuple[str, ...] = option(METHODS, "of the image-classification app")
    data: str = option("digits", "digits (embedded) or cifar10")
    data_path: str = option("uoft-cs/cifar10", "of cifar10: a name on the Hub or a local folder")
    examples: int = option(0, "training examples at most; 0 = all")
    clients: int = option(10, "number of clients K")
    alpha: float = option(0.1, "Dirichlet concentration")
    model: str = option("small-cnn", "a model of the app")
    batch_size: int = option(64, "global batch size B; on a device alone, its share of it")
    rounds: int = option(10, "passes over the data", quick=3)
    learning_rates: tuple[float, ...] = option(
        (0.01, 0.05), "of SGD with momentum 0.9; each method gets its best", quick=(0.01,)
    )
    seeds: int = option(3, "seeds, of weights, partition and draws, paired", quick=1)
    target: float = option(0.8, "test accuracy to reach, in [0, 1]")
    device_gigaflops: float = option(10.0, "10^9 operations a second, of a device")
    server_gigaflops: float = option(1000.0, "10^9 operations a second, of the server")
    device_megabytes: float = option(5.0, "10^6 bytes a second between the server and a device")
    latency_s: float = option(0.05, "seconds of an exchange, there and back")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("methods", self.methods, METHODS.__contains__, f"one of {', '.join(METHODS)}")
        check_one_of("data", self.data, ("digits", "cifar10"))
        for name, least in (
            ("examples", 0),
            ("clients", 2),
            ("batch_size", 1),
            ("rounds", 1),
            ("seeds", 1),
            ("latency_s", 0.0),
        ):
            check_at_least(name, getattr(self, name), least)
        above_0 = "above 0 and finite"
        check_all("learning_rates", self.learning_rates, lambda rate: 0 < rate < np.inf, above_0)
        for name in ("alpha", "device_gigaflops", "server_gigaflops", "device_megabytes"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {above_0}")
        if not 0 < self.target <= 1:
            raise ConfigError(f"target is {self.target}; an accuracy must be in (0, 1]")

    @property
    def machines(self) -> Machines:
        """What simulated time takes machines and network for."""
        return Machines(
            device_gigaflops=self.device_gigaflops,
            server_gigaflops=self.server_gigaflops,
            device_megabytes=self.device_megabytes,
            latency_s=self.latency_s,
        )

    def runs(self) -> list[list[CompareKey]]:
        """Return the keys of all results, those of one run of the app together."""
        return [self._run(*each) for each in product(range(self.seeds), self.learning_rates)]

    def _run(self, seed: int, learning_rate: float) -> list[CompareKey]:
        return [
            CompareKey(
                method=method,
                seed=seed,
                clients=self.clients,
                alpha=self.alpha,
                data=self.data,
                data_path=self.data_path,
                examples=self.examples,
                model=self.model,
                batch_size=self.batch_size,
                rounds=self.rounds,
                learning_rate=learning_rate,
                **asdict(self.machines),
            )
            for method in self.methods
        ]


def compare(settings: CompareSettings) -> str:
    """Compare all methods of the app, by rounds, bytes, time, and work and memory on devices.

    For each seed and learning rate the image-classification app runs once by `flwr run`, and
    goes through the methods one after the other: each from the same weights, with the same
    partition, optimizer and number of passes over the data. The learning rate with the best mean
    final accuracy is taken, for each method. Bytes are measured: activations, gradients and
    weights, of all devices, both ways. Work (forward and backward, of matrix products and
    convolutions) and memory (weights, gradients, optimizer, and what the largest batch of a
    device keeps for the backward pass) are measured on the model and the cut. Time is simulated:
    a step lasts as long as its busiest device computes, sends and waits, and then as the server
    computes.
    """
    store = ResultStore(settings.out, CompareKey)
    runs = settings.runs()
    todo = [missing for keys in runs if (missing := [k for k in keys if not store.has(k)])]
    if todo:
        with FlowerSimulation(_APP) as simulation:
            for keys in todo:
                _run(simulation, settings, keys, store)

    everything = [key for keys in runs for key in keys]
    best = best_rates(store.rows(everything))
    keys = [key for key in everything if key.learning_rate == best[key.method]]
    keys.sort(key=lambda key: (key.seed, settings.methods.index(key.method)))
    rows = store.rows(keys)
    found = compare_table(rows, settings.target)
    for axis in AXES:
        save(axis_figure(rows, axis), settings.out / f"{axis.picture}.png")
    save(memory_figure(rows), settings.out / "memory.png")
    store.export(keys, {"target": settings.target, "table": found})
    return (
        f"Test accuracy after {settings.rounds} rounds; what a round costs and a device holds; "
        f"what\nit cost to reach {100 * settings.target:g} %. Means of {settings.seeds} seeds\n\n"
        f"{table(found)}"
    )


def _run(
    simulation: FlowerSimulation,
    settings: CompareSettings,
    keys: Sequence[CompareKey],
    store: ResultStore,
) -> None:
    """Run the app once, and keep the results of each method that was finished."""
    with tempfile.TemporaryDirectory(prefix="flower-psl-compare-") as folder:
        try:
            status, _ = simulation.run(
                _run_config(settings, keys, folder),
                num_supernodes=settings.clients,
                num_actors=settings.workers,
                timeout_s=_SECONDS_A_ROUND * settings.rounds * len(keys),
            )
        finally:
            for key in keys:
                results = Path(folder) / key.method
                if (results / "device.json").exists():  # written last
                    store.add(key, [read_run(results, settings.machines)])
    if status != "finished:completed":
        raise PslError(f"the run ended as {status}; its log is above. Run it again to go on.")


def _run_config(settings: CompareSettings, keys: Sequence[CompareKey], out: str) -> RunConfig:
    path = Path(settings.data_path)
    images = str(path.resolve()) if path.exists() else settings.data_path
    return {
        "compare": True,
        "phases": ", ".join(f"{key.method}:{settings.rounds}" for key in keys),
        "dataset": "digits" if settings.data == "digits" else images,
        "max-train-examples": settings.examples,
        "dirichlet-alpha": settings.alpha,
        "model": settings.model,
        "batch-size": settings.batch_size,
        "learning-rate": keys[0].learning_rate,
        "min-available-nodes": settings.clients,
        "seed": keys[0].seed,
        "out": out,
    }
