"""Small runs that can be stopped anywhere and resumed: what tests of checkpoints share."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import TensorDataset

from flower_psl import (
    Checkpoints,
    FixedLocalSampler,
    GlobalSampler,
    ParallelSplitLearning,
    QuotaSampler,
    RunRecorder,
    Sampler,
    SplitClient,
    StragglerSampler,
    cut,
    run_in_process,
)
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest

NUM_EXAMPLES = {2: 7, 5: 4, 9: 10}
NUM_ROUNDS = 2


class Killed(BaseException):
    """What stops a run, in the place of a signal that no process survives."""


@dataclass
class Fuse:
    """Stops a run when as many requests as it has were answered."""

    requests: float = float("inf")

    def burn(self) -> None:
        self.requests -= 1
        if self.requests < 0:
            raise Killed


@dataclass(frozen=True)
class MortalClient:
    """A client that takes the whole process with it."""

    client: SplitClient
    fuse: Fuse

    def describe(self) -> DescribeReply:
        return self.client.describe()

    def prepare(self, step: StepId) -> None:
        self.client.prepare(step)

    def handle(self, request: StepRequest) -> StepReply:
        self.fuse.burn()
        reply = self.client.handle(request)
        self.fuse.burn()  # the device has done it, and the server never hears of it
        return reply


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run differs in from others."""

    client_sync: str = "step"
    server_update: str = "global-batch"
    sampler: Callable[[], Sampler] = field(default=lambda: GlobalSampler(6, seed=1))
    every_steps: int | None = 1
    keep: int = 2
    fraction_evaluate: float = 0.0


SETTINGS = {
    "step": Setting(fraction_evaluate=1.0),
    "step, every other": Setting(every_steps=2),
    "step, stragglers": Setting(
        sampler=lambda: StragglerSampler(batch_size=5, participation=0.9, slow=[5])
    ),
    "step, local batches": Setting(sampler=lambda: FixedLocalSampler(batch_size=3)),
    "step, quota": Setting(sampler=lambda: QuotaSampler(GlobalSampler(4, seed=2), 0.5)),
    "round": Setting(client_sync="round", fraction_evaluate=1.0),
    "round, copies": Setting(client_sync="round", server_update="per-client-average"),
    "round, one by one": Setting(client_sync="round", server_update="per-client-sequential"),
    "none": Setting(client_sync="none", fraction_evaluate=1.0),
    "round, one kept": Setting(client_sync="round", keep=1),
    "none, one kept": Setting(client_sync="none", keep=1),
    "none, copies": Setting(client_sync="none", server_update="per-client-average"),
}


def build_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # BatchNorm over (examples, 2, 4), so that a part of one example is no trouble.
        return nn.Sequential(
            *(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2), nn.Dropout(0.2)),
            *(nn.Flatten(), nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2)),
            *(nn.Dropout(0.2), nn.Flatten(), nn.Linear(8, 3)),
        )


SPLIT = cut(build_model(), at="3")


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.01)


def momentum(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


def cosine(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, total_steps)


def make_clients(state_dir: Path | None, fuse: Fuse) -> dict[int, MortalClient]:
    draws = torch.Generator().manual_seed(1)
    return {
        key: MortalClient(
            SplitClient(
                SPLIT.client,
                data := TensorDataset(
                    torch.randn(count, 6, generator=draws),
                    torch.randint(3, (count,), generator=draws),
                ),
                data,
                optimizer_fn=momentum,
                state_dir=state_dir,
            ),
            fuse,
        )
        for key, count in NUM_EXAMPLES.items()
    }


def make_strategy(setting: Setting, folder: Path, **changes: Any) -> ParallelSplitLearning:
    settings: dict[str, Any] = {
        "model": SPLIT,
        "sampler": setting.sampler(),
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer_fn": adam,
        "lr_scheduler_fn": None if setting.server_update == "per-client-average" else cosine,
        "max_grad_norm": 1.0,
        "client_sync": setting.client_sync,
        "server_update": setting.server_update,
        "fraction_evaluate": setting.fraction_evaluate,
        "recorder": RunRecorder(folder / "out"),
        "checkpoints": Checkpoints(
            folder=folder / "checkpoints", every_steps=setting.every_steps, keep=setting.keep
        ),
    }
    return ParallelSplitLearning(**(settings | changes))


def run(setting: Setting, folder: Path, fuse: Fuse | None = None, **changes: Any) -> Result:
    """Start a run, or resume it."""
    clients = make_clients(folder / "devices", fuse or Fuse())

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"rounds": server_round, "arrays": len(arrays)})

    return run_in_process(
        make_strategy(setting, folder, **changes),
        clients,
        ArrayRecord(build_model().state_dict()),
        num_rounds=NUM_ROUNDS,
        evaluate_fn=None if setting.client_sync == "none" else evaluate,
    )


def left_behind(result: Result, out: Path) -> dict[str, Any]:
    """Return all that a run leaves, without the times it took."""
    arrays = result.arrays.to_torch_state_dict()
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in arrays.items()},
        "train": _plain(result.train_metrics_clientapp),
        "over the cut": _plain(result.evaluate_metrics_clientapp),
        "central": _plain(result.evaluate_metrics_serverapp),
        "steps": [_timeless(step) for step in steps],
        "summary": _timeless(summary),
    }


def _plain(metrics: Mapping[int, MetricRecord]) -> dict[int, dict[str, Any]]:
    return {server_round: dict(record) for server_round, record in metrics.items()}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "second" not in name}
