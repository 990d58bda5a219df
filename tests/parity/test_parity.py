"""Split training is centralized training on the same global batches.

The reference is a plain PyTorch loop over the uncut model. It knows which examples make
each batch, because schedule and permutations are functions of the seed.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from flower_psl import (
    FixedLocalSampler,
    GlobalSampler,
    ParallelSplitLearning,
    ProportionalLocalSampler,
    Sampler,
    SequentialSampler,
    SplitClient,
    cut,
    run_in_process,
)
from flower_psl.sampling import BatchSchedule, Purpose, generator
from flower_psl.transport import Device
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, records

NUM_CLASSES = 5
SEED = 7
LossFn = Callable[[Tensor, Tensor], Tensor]
OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def plain_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 5)
    )


def residual_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(4),
        nn.MaxPool2d(2),
        Residual(4),
        nn.Flatten(),
        nn.Linear(36, NUM_CLASSES),
    )


MODELS = {"plain": (plain_model, "1"), "residual": (residual_model, "1")}

SAMPLERS: dict[str, Sampler] = {
    "gpsl": GlobalSampler(batch_size=16, seed=SEED),
    "gpsl-chunks": GlobalSampler(batch_size=16, seed=SEED, min_client_batch=3),
    "fls": FixedLocalSampler(batch_size=16),
    "fpls": ProportionalLocalSampler(batch_size=16),
    "sl": SequentialSampler(batch_size=16),
}

LOSSES: dict[str, LossFn] = {
    "mean": nn.CrossEntropyLoss(),
    "class-weights": nn.CrossEntropyLoss(weight=torch.tensor([0.1, 3.0, 1.0, 0.5, 2.0])),
    "label-smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "ignore-index": nn.CrossEntropyLoss(ignore_index=2),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
}

OPTIMIZERS: dict[str, OptimizerFn] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@dataclass
class GradientSpy:
    """Keeps the gradients of the first step of the optimizer it makes."""

    optimizer_fn: OptimizerFn
    gradients: list[Tensor] = field(default_factory=list)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        kept = list(parameters)

        def keep(optimizer: Optimizer, args: object, kwargs: object) -> None:
            if not self.gradients:
                self.gradients += [p.grad.clone() for p in kept if p.grad is not None]

        optimizer = self.optimizer_fn(kept)
        optimizer.register_step_pre_hook(keep)
        return optimizer


class OverMessages:
    """A device behind Flower's records, whose backward pass is always in a new process."""

    def __init__(self, client: SplitClient) -> None:
        self._client = client
        self._forward: StepRequest | None = None

    def describe(self) -> DescribeReply:
        return records.decode_description(records.encode_description(self._client.describe()))

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        weights = records.encode_tensors(request.weights)
        received = records.decode_request(records.encode_request(request, weights))
        if received.phase is Phase.BACKWARD:
            assert self._forward is not None
            received = replace(received, weights=self._forward.weights)
            self._client.forget()
        else:
            self._forward = received
        return records.decode_reply(records.encode_reply(self._client.handle(received)))


@dataclass(kw_only=True)
class Case:
    """One comparison: the same training, split and centralized."""

    dtype: torch.dtype = torch.float64
    model: str = "plain"
    sampler: Sampler = SAMPLERS["gpsl"]
    loss_fn: LossFn = LOSSES["mean"]
    optimizer_fn: OptimizerFn = OPTIMIZERS["sgd"]
    max_grad_norm: float | None = None
    sizes: tuple[int, ...] = (17, 3, 29, 1, 14)
    num_rounds: int = 1
    over_messages: bool = False
    overlap: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(SEED)
        build, self.at = MODELS[self.model]
        self.initial = build().to(self.dtype)
        self.images = torch.randn(sum(self.sizes), 1, 6, 6, dtype=self.dtype)
        self.labels = torch.randint(0, NUM_CLASSES, (sum(self.sizes),))
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn = copy.deepcopy(self.loss_fn).to(self.dtype)

    def split(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the first step's gradients and the final weights of split training."""
        spy = GradientSpy(self.optimizer_fn)
        strategy = ParallelSplitLearning(
            model=cut(self.initial, at=self.at),
            sampler=self.sampler,
            loss_fn=self.loss_fn,
            optimizer_fn=spy,
            max_grad_norm=self.max_grad_norm,
            overlap=self.overlap,
            seed=SEED,
        )
        parts = zip(
            torch.split(self.images, [*self.sizes]),
            torch.split(self.labels, [*self.sizes]),
            strict=True,
        )
        clients: dict[int, Device] = {}
        for key, (images, labels) in enumerate(parts):
            client = SplitClient(strategy.model.client, TensorDataset(images, labels))
            clients[key] = OverMessages(client) if self.over_messages else client
        arrays = ArrayRecord(self.initial.state_dict())
        result = run_in_process(strategy, clients, arrays, num_rounds=self.num_rounds)
        return spy.gradients, result.arrays.to_torch_state_dict()

    def centralized(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the same of a plain loop."""
        spy = GradientSpy(self.optimizer_fn)
        model = copy.deepcopy(self.initial)
        optimizer = spy(model.parameters())
        for rows in self.global_batches():
            optimizer.zero_grad()
            self.loss_fn(model(self.images[rows]), self.labels[rows]).backward()  # type: ignore[no-untyped-call]
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            optimizer.step()
        return spy.gradients, dict(model.state_dict())

    def global_batches(self) -> Iterator[list[int]]:
        """Yield the rows of each step, clients in ascending order of their keys."""
        first = [sum(self.sizes[:key]) for key in range(len(self.sizes))]
        for server_round in range(1, self.num_rounds + 1):
            order = [
                generator(SEED, Purpose.PERMUTATION, server_round, key).permutation(size)
                for key, size in enumerate(self.sizes)
            ]
            used = [0] * len(self.sizes)
            for step in self.sampler.schedule(dict(enumerate(self.sizes)), server_round):
                rows: list[int] = []
                for key, size in step.items():
                    taken = order[key][used[key] : used[key] + size]
                    rows += [first[key] + int(index) for index in taken]
                    used[key] += size
                yield rows


def relative(ours: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest difference of any element, relative to the largest element."""
    assert len(ours) == len(reference) > 0
    pairs = zip(ours, reference, strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return worst / max(float(b.abs().max()) for b in reference)


def assert_parity(case: Case) -> None:
    gradients, weights = case.split()
    expected_gradients, expected_weights = case.centralized()
    limit = 1e-12 if case.dtype is torch.float64 else 1e-5
    assert relative(gradients, expected_gradients) <= limit
    if case.dtype is torch.float64:
        assert list(weights) == list(expected_weights)
        for name, weight in weights.items():
            assert float((weight - expected_weights[name]).abs().max()) <= 1e-9, name


@pytest.mark.parametrize("over_messages", [False, True], ids=["in-process", "messages"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler: str, dtype: torch.dtype, over_messages: bool) -> None:
    assert_parity(Case(sampler=SAMPLERS[sampler], dtype=dtype, over_messages=over_messages))


@pytest.mark.parametrize("over_messages", [False, True], ids=["in-process", "messages"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_optimizer_and_model(
    loss: str, optimizer: str, model: str, over_messages: bool
) -> None:
    assert_parity(
        Case(
            loss_fn=LOSSES[loss],
            optimizer_fn=OPTIMIZERS[optimizer],
            model=model,
            over_messages=over_messages,
        )
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_server_that_computes_part_by_part(loss: str, dtype: torch.dtype) -> None:
    assert_parity(Case(loss_fn=LOSSES[loss], dtype=dtype, model="residual", overlap=True))


@pytest.mark.parametrize("overlap", [False, True], ids=["whole", "overlap"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_weights_after_100_steps(model: str, optimizer: str, overlap: bool) -> None:
    case = Case(model=model, optimizer_fn=OPTIMIZERS[optimizer], num_rounds=25, overlap=overlap)
    assert sum(1 for _ in case.global_batches()) == 100
    assert_parity(case)


def test_clipping_is_by_the_norm_of_the_whole_gradient() -> None:
    assert_parity(Case(max_grad_norm=0.05, num_rounds=3))


class Pinned(Sampler):
    """The same global batches of 20, whoever holds the examples."""

    def schedule(self, num_examples: dict[int, int], server_round: int) -> BatchSchedule:  # type: ignore[override]
        used = dict.fromkeys(num_examples, 0)
        steps = []
        for _ in range(3):
            left, step = 20, {}
            for key, size in num_examples.items():
                step[key] = min(left, size - used[key])
                left -= step[key]
                used[key] += step[key]
            steps.append(step)
        return BatchSchedule.from_steps(steps, num_examples)


@pytest.mark.parametrize(
    ("num_clients", "over_messages"), [(1, True), (2, False), (2, True), (10, False), (10, True)]
)
def test_cutting_the_same_ordered_batches_among_clients_changes_nothing(
    num_clients: int, over_messages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InOrder:
        def permutation(self, size: int) -> NDArray[np.int64]:
            return np.arange(size)

    monkeypatch.setattr("flower_psl.client.own_examples.generator", lambda *_: InOrder())
    one = Case(sampler=Pinned(), sizes=(60,), model="residual")
    many = replace(one, sizes=(60 // num_clients,) * num_clients, over_messages=over_messages)
    assert torch.equal(one.images, many.images)
    gradients, weights = one.split()
    other_gradients, other_weights = many.split()
    assert relative(other_gradients, gradients) <= 1e-12
    for name, weight in weights.items():
        assert float((weight - other_weights[name]).abs().max()) <= 1e-9, name


def test_messages_give_the_same_bits_as_in_process() -> None:
    near, far = (
        Case(dtype=torch.float32, over_messages=flag, num_rounds=3) for flag in (False, True)
    )
    (_, here), (_, there) = near.split(), far.split()
    assert all(torch.equal(weight, there[name]) for name, weight in here.items())
    assert not torch.equal(here["0.weight"], near.initial.state_dict()["0.weight"])


def test_the_reference_is_not_met_by_chance() -> None:
    case = Case()
    gradients, _ = case.split()
    other = replace(case, sampler=SAMPLERS["fpls"])
    expected, _ = other.centralized()
    assert relative(gradients, expected) > 1e-3
