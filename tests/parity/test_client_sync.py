"""Training in which clients update their segments, against the same written by hand.

The examples of each batch are pinned: every client goes through its data in order.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import (
    Encodings,
    ParallelSplitLearning,
    Sampler,
    SplitClient,
    SplitClientApp,
    cut,
    run_in_process,
)
from flower_psl.client import split_client_app
from flower_psl.client.client_cache import ClientCache
from flower_psl.sampling import BatchSchedule, Purpose, generator
from flower_psl.transport import Device
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, records

SEED = 3
NUM_CLASSES = 3
# Some clients sit out steps, and one a round; each round is the same.
STEPS: list[Mapping[int, int]] = [{0: 3, 1: 1}, {1: 2, 2: 4}, {0: 2, 1: 3, 2: 1}]
# One client a step, as a relay, and not all of their examples.
ALONE: list[Mapping[int, int]] = [{0: 3}, {0: 2}, {1: 4}, {1: 1}, {2: 3}]
SIZES = {0: 5, 1: 6, 2: 5}
CLASS_WEIGHTS = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64)
OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]
StateDict = dict[str, Tensor]
CarryFn = Callable[[int, Callable[[], SplitClient]], Device]


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.3)


def momentum(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2)


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.02, weight_decay=0.1)


OPTIMIZERS = {"sgd": sgd, "momentum": momentum, "adamw": adamw}


def plain_model() -> nn.Sequential:
    torch.manual_seed(SEED)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, NUM_CLASSES)]
    return nn.Sequential(*layers).double()


def random_model() -> nn.Sequential:
    """Return a model whose client segment draws numbers and keeps running statistics."""
    torch.manual_seed(SEED)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, NUM_CLASSES)]
    return nn.Sequential(*layers).double()


class Pinned(Sampler):
    """The same steps in every round."""

    def __init__(self, steps: Sequence[Mapping[int, int]]) -> None:
        self.steps = steps

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        return BatchSchedule.from_steps(self.steps, num_examples)


@dataclass(kw_only=True)
class Case:
    """One way to train, in process unless `carry` puts something around the clients."""

    steps: Sequence[Mapping[int, int]] = field(default_factory=lambda: STEPS)
    model: Callable[[], nn.Sequential] = plain_model
    at: str = "1"
    loss_fn: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    optimizer_fn: OptimizerFn = sgd
    num_rounds: int = 3
    settings: dict[str, Any] = field(default_factory=dict)
    carry: CarryFn = lambda key, make: make()

    def data(self) -> dict[int, tuple[Tensor, Tensor]]:
        draws = torch.Generator().manual_seed(5)
        return {
            key: (
                torch.randn(size, 4, dtype=torch.float64, generator=draws),
                torch.randint(NUM_CLASSES, (size,), generator=draws),
            )
            for key, size in SIZES.items()
        }

    def batches(self) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """Return the examples of each client in each step of a round."""
        at, batches = dict.fromkeys(SIZES, 0), []
        for step in self.steps:
            batch = {}
            for key, size in step.items():
                inputs, labels = self.data()[key]
                batch[key] = (
                    inputs[at[key] : at[key] + size],
                    labels[at[key] : at[key] + size],
                )
                at[key] += size
            batches.append(batch)
        return batches

    def client(self, key: int) -> SplitClient:
        data = TensorDataset(*self.data()[key])
        segment = cut(self.model(), at=self.at).client
        return SplitClient(segment, data, data, optimizer_fn=self.optimizer_fn)

    def train(self) -> Result:
        """Return the result of a run."""
        strategy = ParallelSplitLearning(
            model=cut(self.model(), at=self.at),
            sampler=Pinned(self.steps),
            loss_fn=self.loss_fn,
            optimizer_fn=self.optimizer_fn,
            seed=SEED,
            **self.settings,
        )
        clients = {key: self.carry(key, partial(self.client, key)) for key in SIZES}
        arrays = ArrayRecord(self.model().state_dict())
        return run_in_process(strategy, clients, arrays, num_rounds=self.num_rounds)

    def weights(self) -> StateDict:
        return dict(self.train().arrays.to_torch_state_dict())


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class InOrder:
        def permutation(self, size: int) -> NDArray[np.int64]:
            return np.arange(size)

    monkeypatch.setattr("flower_psl.client.own_examples.generator", lambda *_: InOrder())


def assert_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


def differs(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return any(float((ours[name] - theirs[name]).abs().max()) > 1e-3 for name in theirs)


def normalizer(loss_fn: nn.Module, labels: Tensor) -> float:
    """Return what one of `LOSSES` divides the sum over a client's part by."""
    if getattr(loss_fn, "reduction", "mean") == "sum":
        return 1.0
    weight = loss_fn.weight if isinstance(loss_fn, nn.CrossEntropyLoss) else None
    return float(len(labels) if weight is None else sum(weight[label] for label in labels))


def mean_of(models: Mapping[int, nn.Module], weights: Mapping[int, float]) -> StateDict:
    total = sum(weights[key] for key in models)
    names = next(iter(models.values())).state_dict()
    return {
        name: sum(
            (model.state_dict()[name] * (weights[key] / total) for key, model in models.items()),
            start=torch.zeros(()),
        )
        for name in names
    }


ONE_STEP = [{0: 3, 1: 6, 2: 2}]


@pytest.mark.parametrize("update", ["global-batch", "per-client-average"])
def test_one_step_a_round_of_plain_sgd_is_a_step_of_the_whole_model(update: str) -> None:
    by_step = Case(steps=ONE_STEP).weights()
    by_round = Case(
        steps=ONE_STEP, settings={"client_sync": "round", "server_update": update}
    ).weights()
    assert_close(by_round, by_step)
    assert differs(by_step, plain_model().state_dict())


@pytest.mark.parametrize("over_messages", [False, True], ids=["in-process", "messages"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [STEPS, ALONE], ids=["together", "alone"])
def test_per_client_average_is_federated_averaging(
    steps: list[Mapping[int, int]], optimizer: str, over_messages: bool, device_processes: None
) -> None:
    case = Case(
        steps=steps,
        optimizer_fn=OPTIMIZERS[optimizer],
        settings={"client_sync": "round", "server_update": "per-client-average"},
    )
    if over_messages:
        case.carry = InNewProcesses
    batches = case.batches()
    used = {key: sum(len(batch[key][1]) for batch in batches if key in batch) for key in SIZES}
    model = plain_model()
    for _ in range(case.num_rounds):
        twins: dict[int, nn.Module] = {key: copy.deepcopy(model) for key in SIZES}
        optimizers = {key: case.optimizer_fn(twin.parameters()) for key, twin in twins.items()}
        for batch in case.batches():
            for key, (inputs, labels) in batch.items():
                optimizers[key].zero_grad()
                torch.autograd.backward(case.loss_fn(twins[key](inputs), labels))
                optimizers[key].step()
        model.load_state_dict(mean_of(twins, used))
    assert_close(case.weights(), model.state_dict())


class ByHand:
    """The server on the global batch, and every client on the gradient of its own loss."""

    def __init__(self, case: Case, factor: Callable[[Tensor, Tensor], float] | None) -> None:
        split = cut(case.model(), at=case.at)
        self.case, self.factor, self.split = case, factor, split
        self.server_optimizer = case.optimizer_fn(split.server.parameters())
        self.start()

    def start(self) -> None:
        self.clients = {key: copy.deepcopy(self.split.client) for key in SIZES}
        self.optimizers = {
            key: self.case.optimizer_fn(client.parameters())
            for key, client in self.clients.items()
        }

    def step(self, batch: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        loss_fn, server = self.case.loss_fn, self.split.server
        every_label = torch.cat([labels for _, labels in batch.values()])
        outputs = {key: self.clients[key](inputs) for key, (inputs, _) in batch.items()}
        whole = loss_fn(server(torch.cat([*outputs.values()])), every_label)
        for key, (_, labels) in batch.items():
            self.optimizers[key].zero_grad()
            if self.factor is None:
                own = loss_fn(server(outputs[key]), labels)
            else:
                own = whole * self.factor(every_label, labels)
            torch.autograd.backward(
                own, inputs=[*self.clients[key].parameters()], retain_graph=True
            )
        self.server_optimizer.zero_grad()
        torch.autograd.backward(whole, inputs=[*server.parameters()])
        self.server_optimizer.step()
        for key in batch:
            self.optimizers[key].step()

    def train(self, *, shared: bool) -> None:
        batches = self.case.batches()
        weights = {
            key: sum(
                normalizer(self.case.loss_fn, batch[key][1]) for batch in batches if key in batch
            )
            for key in SIZES
        }
        for _ in range(self.case.num_rounds):
            for batch in batches:
                self.step(batch)
            if shared:
                self.split.client.load_state_dict(mean_of(self.clients, weights))
                self.start()


LOSSES: dict[str, nn.Module] = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class-weights": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
    "smoothed": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_client_sees_the_gradient_of_its_own_loss(loss: str, optimizer: str) -> None:
    case = Case(
        loss_fn=LOSSES[loss],
        optimizer_fn=OPTIMIZERS[optimizer],
        settings={"client_sync": "round"},
    )
    by_hand = ByHand(case, factor=None)
    by_hand.train(shared=True)
    assert_close(case.weights(), by_hand.split.state_dict())


def test_counting_examples_would_be_wrong_for_class_weights() -> None:
    case = Case(loss_fn=LOSSES["class-weights"], settings={"client_sync": "round"})
    by_count = ByHand(case, factor=lambda whole, part: len(whole) / len(part))
    by_count.train(shared=True)
    assert differs(case.weights(), by_count.split.state_dict())


def test_segments_that_are_never_shared_stay_on_their_clients() -> None:
    case = Case(optimizer_fn=adamw, settings={"client_sync": "none"})
    by_hand = ByHand(case, factor=None)
    by_hand.train(shared=False)
    result = case.train()
    assert_close(result.arrays.to_torch_state_dict(), by_hand.split.server.state_dict())
    total, correct = 0.0, 0
    for key, (inputs, labels) in case.data().items():
        outputs = by_hand.split.server(by_hand.clients[key](inputs)).detach()
        total += float(case.loss_fn(outputs, labels)) * len(labels)
        correct += int((outputs.argmax(1) == labels).sum())
    metrics = result.evaluate_metrics_clientapp[case.num_rounds]
    assert metrics["loss"] == pytest.approx(total / sum(SIZES.values()), rel=1e-10)
    assert metrics["accuracy"] == correct / sum(SIZES.values())


def test_one_client_after_the_other_is_one_update_each() -> None:
    case = Case(
        optimizer_fn=momentum,
        settings={"client_sync": "round", "server_update": "per-client-sequential"},
    )
    split = cut(plain_model(), at="1")
    server_optimizer = momentum(split.server.parameters())
    orders = []
    for server_round in range(1, case.num_rounds + 1):
        clients: dict[int, nn.Module] = {key: copy.deepcopy(split.client) for key in SIZES}
        optimizers = {key: momentum(client.parameters()) for key, client in clients.items()}
        for step, batch in enumerate(case.batches(), 1):
            draws = generator(SEED, Purpose.SERVER_ORDER, server_round, step)
            order = [list(batch)[place] for place in draws.permutation(len(batch))]
            orders.append(order == sorted(order))
            for key in order:
                inputs, labels = batch[key]
                server_optimizer.zero_grad()
                optimizers[key].zero_grad()
                loss = case.loss_fn(split.server(clients[key](inputs)), labels)
                torch.autograd.backward(loss)
                server_optimizer.step()
                optimizers[key].step()
        split.client.load_state_dict(mean_of(clients, SIZES))
    assert_close(case.weights(), split.state_dict())
    assert True in orders and False in orders


class InNewProcesses:
    """A device behind Flower's messages: every message starts a process, and comes twice."""

    def __init__(self, key: int, make: Callable[[], SplitClient]) -> None:
        self._context = Context(1, key + 1, {"partition-id": key}, RecordDict(), {})
        self._make = make

    def _send(self, kind: str, content: RecordDict) -> RecordDict:
        app = SplitClientApp(lambda context: self._make())
        split_client_app._CLIENTS = ClientCache()
        reply = app(Message(content, self._context.node_id, kind), self._context)
        assert not reply.has_error(), reply.error.reason
        return reply.content

    def describe(self) -> DescribeReply:
        return records.decode_description(self._send("query.psl_describe", RecordDict()))

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        kind = "evaluate.psl_step" if request.phase is Phase.EVALUATE else "train.psl_step"
        content = records.encode_request(request, records.encode_tensors(request.weights))
        first, second = (records.decode_reply(self._send(kind, content)) for _ in range(2))
        for name, tensor in first.weights.items():
            assert torch.equal(tensor, second.weights[name]), name
        if first.activations is not None and second.activations is not None:
            assert torch.equal(first.activations, second.activations)
        return second


@pytest.mark.parametrize("encoding", ["raw", "int8"])
@pytest.mark.parametrize("sync", ["round", "none"])
def test_messages_give_the_same_bits_as_in_process(
    sync: str, encoding: str, device_processes: None
) -> None:
    case = Case(
        model=random_model,
        at="2",
        steps=[{0: 3, 1: 2}, {1: 2, 2: 5}],
        optimizer_fn=adamw,
        settings={
            "client_sync": sync,
            "encodings": Encodings(activations=encoding, gradients=encoding, weights=encoding),
        },
    )
    here = case.train()
    case.carry = InNewProcesses
    there = case.train()
    ours, theirs = (result.arrays.to_torch_state_dict() for result in (here, there))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert here.train_metrics_clientapp == there.train_metrics_clientapp
    assert here.evaluate_metrics_clientapp == there.evaluate_metrics_clientapp


def test_running_statistics_are_the_mean_of_the_clients_own() -> None:
    case = Case(
        model=lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, NUM_CLASSES)).double(),
        at="0",
        steps=[{0: 3, 1: 2}, {0: 2}],
        num_rounds=1,
        settings={"client_sync": "round"},
    )
    own: dict[int, nn.Module] = {key: nn.BatchNorm1d(4).double() for key in (0, 1)}
    for batch in case.batches():
        for key, (inputs, _) in batch.items():
            own[key](inputs)
    weights = case.weights()
    expected = mean_of(own, {0: 5, 1: 2})
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(weights[f"0.{name}"], expected[name], rtol=1e-12, atol=1e-14)
    # (5 x 2 + 2 x 1) / 7, rounded.
    assert weights["0.num_batches_tracked"].dtype is torch.int64
    assert int(weights["0.num_batches_tracked"]) == 2


@given(
    steps=st.lists(
        st.dictionaries(st.sampled_from(list(SIZES)), st.integers(1, 5), min_size=1),
        min_size=1,
        max_size=1,
    ),
    weighted=st.booleans(),
)
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_round_is_the_mean_of_what_clients_train_however_examples_are_shared(
    steps: list[dict[int, int]], weighted: bool
) -> None:
    loss_fn = LOSSES["class-weights" if weighted else "mean"]
    case = Case(steps=steps, loss_fn=loss_fn, num_rounds=1, settings={"client_sync": "round"})
    model = plain_model()
    [batch] = case.batches()
    models: dict[int, nn.Module] = {}
    for key, (inputs, labels) in batch.items():
        models[key] = copy.deepcopy(model)
        optimizer = sgd(models[key].parameters())
        torch.autograd.backward(loss_fn(models[key](inputs), labels))
        optimizer.step()
    weights = {key: normalizer(loss_fn, labels) for key, (_, labels) in batch.items()}
    mean = mean_of(models, weights)
    trained = case.weights()
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(trained[name], mean[name], rtol=1e-10, atol=1e-12)
