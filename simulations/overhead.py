"""What a step of split training takes in process, phase by phase, beside a plain loop."""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flower_psl import (
    GlobalSampler,
    ParallelSplitLearning,
    RunRecorder,
    SplitClient,
    cut,
    run_in_process,
)
from simulations.figure import legend, look, panels, save
from simulations.image_data import NUM_CLASSES
from simulations.models import MODELS, initial_model
from simulations.one_thread import one_thread
from simulations.options import RunSettings, check_all, check_at_least, check_one_of, option
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs
from simulations.table import table
from simulations.training import take_step

_CHANNELS, _PIXELS = 3, 32
_LEARNING_RATE = 0.01
_SEED = 0

PHASES = ("clients", "exchange", "server", "update", "rest")


@dataclass(frozen=True, kw_only=True)
class OverheadJob:
    """Rounds of split training, the same with fused clients, and the plain loop, in turns."""

    columns: ClassVar[tuple[str, ...]] = (
        "step_s",
        "fused_s",
        "plain_s",
        *(f"{name}_s" for name in PHASES),
    )

    clients: int
    model: str
    batch_size: int
    steps: int
    repeats: int

    def run(self) -> list[Row]:
        """Return one row: seconds a step, and of each phase, as medians.

        `clients` is what all clients compute, one after the other, and `exchange` what else
        the exchanges with them take; `server` is the server's forward and backward pass.
        """
        draws = torch.Generator().manual_seed(_SEED)
        per_client = -(-self.batch_size * self.steps // self.clients)
        num_examples = per_client * self.clients
        images = torch.randn(num_examples, _CHANNELS, _PIXELS, _PIXELS, generator=draws)
        labels = torch.randint(0, NUM_CLASSES, (num_examples,), generator=draws)
        ours: list[dict[str, float]] = []
        fused: list[float] = []
        plain: list[float] = []
        for repeat in range(self.repeats + 1):
            split_steps = self._split_steps(images, labels)
            fused_steps = self._split_steps(images, labels, fuse=True)
            plain_steps = self._plain_steps(images, labels)
            if repeat:  # the first of each warms up
                ours += split_steps
                fused += [step["step"] for step in fused_steps]
                plain += plain_steps
        medians: Row = {
            f"{name}_s": statistics.median(step[name] for step in ours)
            for name in ("step", *PHASES)
        }
        others: Row = {"fused_s": statistics.median(fused), "plain_s": statistics.median(plain)}
        return [medians | others]

    def _split_steps(
        self, images: Tensor, labels: Tensor, *, fuse: bool = False
    ) -> list[dict[str, float]]:
        """Train for a round and return the seconds of each of its steps, but for a short last."""
        model = initial_model(self.model, _CHANNELS, _PIXELS, _SEED)
        split = cut(model, at=MODELS[self.model][1])
        parts = zip(images.chunk(self.clients), labels.chunk(self.clients), strict=True)
        with tempfile.TemporaryDirectory() as folder:
            strategy = ParallelSplitLearning(
                model=split,
                sampler=GlobalSampler(self.batch_size),
                loss_fn=functional.cross_entropy,
                optimizer_fn=lambda parameters: SGD(parameters, lr=_LEARNING_RATE),
                steps_per_round=self.steps,
                recorder=RunRecorder(folder),
            )
            clients = {
                key: SplitClient(split.client, TensorDataset(*part))
                for key, part in enumerate(parts)
            }
            arrays = ArrayRecord(model.state_dict())
            run_in_process(strategy, clients, arrays, num_rounds=1, fuse_clients=fuse)
            lines = (Path(folder) / "steps.jsonl").read_text().splitlines()
        return [_phases(json.loads(line)) for line in lines]

    def _plain_steps(self, images: Tensor, labels: Tensor) -> list[float]:
        """Take as many steps of a plain loop and return the seconds of each."""
        model = initial_model(self.model, _CHANNELS, _PIXELS, _SEED)
        optimizer = SGD(model.parameters(), lr=_LEARNING_RATE)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SEED))
        times = []
        for rows in torch.split(order, self.batch_size)[: self.steps]:
            started = time.perf_counter()
            take_step(model, optimizer, images[rows], labels[rows])
            times.append(time.perf_counter() - started)
        return times


@dataclass(frozen=True, kw_only=True)
class OverheadSettings(RunSettings):
    """What `overhead` measures."""

    clients: tuple[int, ...] = option(
        (1, 4, 16, 64, 128), "numbers of clients K", quick=(1, 8, 64)
    )
    model: str = option("cnn", f"any of {', '.join(MODELS)}")
    batch_size: int = option(128, "global batch size B", quick=64)
    steps: int = option(20, "of a round", quick=5)
    repeats: int = option(3, "rounds of each, in turns, after one to warm up", quick=2)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_all("clients", self.clients, lambda clients: clients >= 1, "1 or more")
        check_one_of("model", self.model, tuple(MODELS))
        for name in ("batch_size", "steps", "repeats"):
            check_at_least(name, getattr(self, name), 1)


def overhead(settings: OverheadSettings) -> str:
    """Measure a step of split training in process, phase by phase, beside a plain loop.

    Clients and server take turns in one process and one thread, on images of 32 x 32
    pixels: what is above the plain loop's time is what cutting the batch into the parts
    of K clients costs, without any network; and what is left of it where the clients of a
    step are fused into one pass.
    """
    jobs = [
        OverheadJob(
            clients=clients,
            model=settings.model,
            batch_size=settings.batch_size,
            steps=settings.steps,
            repeats=settings.repeats,
        )
        for clients in settings.clients
    ]
    store = ResultStore(settings.out, OverheadJob)
    rows = run_jobs(jobs, store, workers=settings.workers, prepare=one_thread)

    found: list[Row] = [
        {
            "clients": row["clients"],
            "step_ms": 1e3 * float(row["step_s"]),
            "plain_ms": 1e3 * float(row["plain_s"]),
            "ratio": float(row["step_s"]) / float(row["plain_s"]),
            "fused_ms": 1e3 * float(row["fused_s"]),
            "fused_ratio": float(row["fused_s"]) / float(row["plain_s"]),
            **{f"{name}_ms": 1e3 * float(row[f"{name}_s"]) for name in PHASES},
        }
        for row in rows
    ]
    save(overhead_figure(found), settings.out / "overhead.png")
    store.export(jobs, {"table": found})
    return f"A step in process, and its phases; medians\n\n{table(found)}"


def overhead_figure(found: list[Row]) -> Figure:
    """Draw the phases of a step as bars, one for each K, with two other times beside them.

    These are the plain loop's, and that of a step with fused clients.

    Parameters
    ----------
    found : list of dict
        The table of `overhead`.
    """
    figure, [[axes]] = panels(1, 1, x="clients K", y="a step (ms)")
    names = [str(row["clients"]) for row in found]
    bottom = [0.0] * len(found)
    for name in PHASES:
        heights = [float(row[f"{name}_ms"]) for row in found]
        axes.bar(names, heights, bottom=bottom, label=name, color=look(name)["color"], width=0.6)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    for column, label, key in (("plain", "plain loop", "cl"), ("fused", "fused clients", "gpsl")):
        times = [float(row[f"{column}_ms"]) for row in found]
        color = look(key)["color"]
        axes.plot(names, times, label=label, linestyle="", marker="_", ms=24, mew=2, color=color)
    legend(figure, [axes])
    return figure


def _phases(record: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a step's phases, which add up to those of the step."""
    seconds = record["seconds"]
    clients = sum(record["client_seconds"].values())
    phases = {
        "clients": clients,
        "exchange": seconds["forward_exchange"] + seconds["backward_exchange"] - clients,
        "server": seconds["server_forward"] + seconds["server_backward"],
        "update": seconds["update"],
    }
    step = seconds["total"]
    return phases | {"rest": step - sum(phases.values()), "step": step}
