"""One client in ten lies, on digits: which lies are seen, and what they cost the others."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flower_psl import (
    FailurePolicy,
    GlobalSampler,
    ParallelSplitLearning,
    SplitClient,
    cut,
    run_in_process,
)
from flower_psl.transport import Device
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest

LIAR = 3
SEEDS = (0, 1, 2)
NUM_TRAIN = 1400
Lie = Callable[[StepReply], StepReply]


def build(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def sgd(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


def changed(reply: StepReply, change: Callable[[Tensor], Tensor], *names: str) -> StepReply:
    """Change the named tensors of a reply, and the named groups of tensors."""
    for name in names:
        value = getattr(reply, name)
        if isinstance(value, Tensor):
            fields: dict[str, Any] = {name: change(value)}
        else:
            fields = {name: {key: change(tensor) for key, tensor in (value or {}).items()}}
        reply = replace(reply, **fields) if value is not None else reply
    return reply


TENSORS = ("activations", "gradients", "weights")
LIES: dict[str, Lie] = {
    "NaN": lambda reply: changed(reply, lambda x: x * torch.nan, *TENSORS),
    "huge activations": lambda reply: changed(reply, lambda x: x * 1e9, "activations"),
    "huge gradients and weights": lambda reply: changed(
        reply, lambda x: x * 1e9, "gradients", "weights"
    ),
    "labels out of range": lambda reply: changed(reply, lambda y: y + 10, "labels"),
    "fewer activations": lambda reply: changed(reply, lambda x: x[1:], "activations"),
    "more labels": lambda reply: changed(reply, lambda y: torch.cat([y, y]), "labels"),
}
UNSEEN: dict[str, Lie] = {
    "shifted labels": lambda reply: changed(reply, lambda y: (y + 1) % 10, "labels"),
    "opposite gradients": lambda reply: changed(reply, torch.neg, "gradients"),
}


@dataclass
class Liar:
    honest: Device
    lie: Lie

    def describe(self) -> DescribeReply:
        return self.honest.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        return self.lie(self.honest.handle(request))


def accuracy(
    seed: int, sync: str, lie: Lie | None, *, with_liar: bool = True, num_rounds: int = 15
) -> float:
    """Train with nine honest clients, and one that lies; return the accuracy on test data."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(7))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    split = cut(build(seed), at="1")
    clients: dict[int, Device] = {
        key: SplitClient(
            split.client,
            TensorDataset(images[key:NUM_TRAIN:10], labels[key:NUM_TRAIN:10]),
            optimizer_fn=sgd,
        )
        for key in range(10)
        if key != LIAR or with_liar
    }
    if lie is not None:
        clients[LIAR] = Liar(clients[LIAR], lie)
    settings: Any = {"client_sync": sync}
    strategy = ParallelSplitLearning(
        model=split,
        sampler=GlobalSampler(batch_size=64, seed=seed),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=sgd,
        seed=seed,
        failures=FailurePolicy(max_activation_norm=1e3, max_update_norm=1e3),
        **settings,
    )
    arrays = ArrayRecord(build(seed).state_dict())
    result = run_in_process(strategy, clients, arrays, num_rounds=num_rounds)
    model = build(seed)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    with torch.no_grad():
        hits = model(images[NUM_TRAIN:]).argmax(1) == labels[NUM_TRAIN:]
    return float(hits.double().mean())


@pytest.mark.parametrize("sync", ["step", "round"])
@pytest.mark.parametrize("name", LIES)
def test_a_lie_that_can_be_seen_leaves_the_liar_out_for_good(
    name: str, sync: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        accuracy(0, sync, LIES[name], num_rounds=3 if sync == "round" else 1)
    out = [record.getMessage() for record in caplog.records]
    assert {text.split(" is left out")[0] for text in out if "is left out" in text} == {
        f"client {LIAR}"
    }
    assert sum(f"client {LIAR} is left out for good (unusable)" in text for text in out) == 1


@pytest.mark.parametrize("name", UNSEEN)
def test_other_lies_cannot_be_seen(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        accuracy(0, "step", UNSEEN[name], num_rounds=1)
    assert "is left out" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["step", "round"])
def test_the_honest_rest_learns_as_it_does_without_the_liar(sync: str) -> None:
    def mean_accuracy(lie: Lie | None, **who: bool) -> float:
        return mean(accuracy(seed, sync, lie, **who) for seed in SEEDS)

    without = mean_accuracy(None, with_liar=False)
    for name in ("NaN", "huge gradients and weights"):
        assert mean_accuracy(LIES[name]) > without - 0.01, name
    # A lie that is seen in a step costs that step, whatever it is.
    first = accuracy(SEEDS[0], sync, LIES["NaN"], num_rounds=3)
    for name in ("huge activations", "labels out of range", "fewer activations", "more labels"):
        assert accuracy(SEEDS[0], sync, LIES[name], num_rounds=3) == first, name
