"""Runs in which clients fail in every way, beside a slow account of what must come of them.

The account sees what travels and which steps were taken, and computes every update again with
plain PyTorch: with one model and one optimizer for ``client_sync="step"``, else with a segment
and an optimizer for each client. It knows nothing of plans, redraws and ledgers.
"""

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flower_psl import (
    ClientError,
    FailurePolicy,
    GlobalSampler,
    ParallelSplitLearning,
    ProportionalLocalSampler,
    ProtocolError,
    PslError,
    SplitClient,
    WaitError,
    cut,
)
from flower_psl.sampling import Purpose, generator
from flower_psl.telemetry import RoundRecord, StepRecord
from flower_psl.transport import Answers, InProcessTransport, Transport
from flower_psl.transport.corruptions import Corruption
from flower_psl.transport.fault_injection import FaultInjectionTransport
from flower_psl.transport.fault_script import Fault, FaultScript, Injection
from flower_psl.wire import Phase, StepId, StepReply, StepRequest

COUNTS = {1: 17, 4: 5, 6: 23, 9: 11}
ROUNDS = 2
MODES = [
    ("step", "global-batch"),
    ("round", "global-batch"),
    ("none", "global-batch"),
    ("round", "per-client-average"),
    ("none", "per-client-sequential"),
]
NUM_SEEDS = 200
# Of the 40 runs of a mode; the others end because nobody is left at some moment.
LEAST_COMPLETED = 28
# Nothing else may end a run whose clients fail.
ENDS = (
    r"That leaves 0 of the clients with training data; FailurePolicy\.min_clients is 1|"
    r"was discarded 11 times in a row; FailurePolicy\.max_redraws is 10"
)
# But for the one that nobody can see.
CORRUPTIONS = tuple(each for each in Corruption if each is not Corruption.SIGN)
# More exchanges than any of these runs has; a run that does not end is found by it.
BOUND = 600
Place = tuple[int, int, int]  # round, plan, step


def build() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


# One for all: what trains is always a copy.
SPLIT = cut(build(), at="1")


def sgd(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.9)


def data_sets() -> dict[int, TensorDataset]:
    draws = torch.Generator().manual_seed(1)
    return {
        key: TensorDataset(
            torch.randn(count, 6, dtype=torch.float64, generator=draws),
            torch.randint(3, (count,), generator=draws),
        )
        for key, count in COUNTS.items()
    }


class Spy:
    """A transport that keeps what was asked and answered in it."""

    def __init__(self, inner: Transport, name: str) -> None:
        self._inner = inner
        self.name = name
        self.refused: Mapping[str, int] = {}
        self.exchanges: list[tuple[dict[int, StepRequest], Answers[StepReply]]] = []
        self.nodes = inner.nodes
        self.describe = inner.describe
        self.announce = inner.announce

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        assert len(self.exchanges) < BOUND
        # The weights are the model's own tensors, and change with it.
        kept = {
            node: replace(request, weights={n: w.clone() for n, w in request.weights.items()})
            for node, request in requests.items()
        }
        answers = self._inner.exchange(requests, timeout_s)
        self.exchanges.append((kept, answers))
        return answers


class Books:
    """A recorder that keeps the records."""

    def __init__(self) -> None:
        self.steps: dict[Place, StepRecord] = {}
        self.rounds: list[RoundRecord] = []

    def prepare(self, **_: object) -> None: ...

    def start(self, *_: object, **__: object) -> None: ...

    def close(self) -> None: ...

    def record_step(self, record: StepRecord) -> None:
        self.steps[record.server_round, record.plan, record.step] = record

    def record_round(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finish(self, *args: object) -> Path:
        return Path("nowhere") / "summary.json"


@dataclass
class Run:
    spy: Spy
    books: Books
    result: Result | None
    error: PslError | None
    injected: list[Injection]


def run(seed: int, sync: str, update: str, **policy: Any) -> Run:
    """Run with faults of every kind, as the seed says."""
    data = data_sets()
    clients = {
        key: SplitClient(SPLIT.client, each, each, optimizer_fn=sgd) for key, each in data.items()
    }

    def forget(node: int) -> None:
        clients[node].forget()
        clients[node].local.state = None

    faulty = FaultInjectionTransport(
        InProcessTransport(clients),
        FaultScript(
            seed=seed,
            rate=[0.02, 0.05, 0.1, 0.2][seed % 4],
            quiet_calls=2,  # all describe themselves
            corruptions=CORRUPTIONS,
        ),
        forget,
    )
    spy, books = Spy(faulty, ["in-process", "messages"][seed % 3 == 0]), Books()
    settings: Any = {"client_sync": sync, "server_update": update, "recorder": books}
    sampler = [GlobalSampler(batch_size=8, seed=seed), ProportionalLocalSampler(batch_size=9)]
    strategy = ParallelSplitLearning(
        model=SPLIT,
        sampler=sampler[seed % 7 == 0],
        loss_fn=cross_entropy,
        optimizer_fn=sgd,
        seed=seed,
        failures=FailurePolicy(
            quorum=[1.0, 0.6][seed % 2],
            max_activation_norm=1e3,
            max_update_norm=1e3,
            **policy,
        ),
        **settings,
    )
    end: PslError | None = None
    try:
        result = strategy.run_over(
            spy,
            ArrayRecord(build().state_dict()),
            num_rounds=ROUNDS,
            timeout=1e6,
            evaluate_fn=None,
            min_nodes=1,
        )
    except PslError as error:
        result, end = None, error
    return Run(spy, books, result, end, faulty.injected)


def examples_of(step: StepId, data: TensorDataset) -> tuple[list[int], Tensor, Tensor]:
    """Return the places in the data set, the inputs and the labels of a client's part."""
    turn, first = divmod(step.start, len(data))
    order = generator(step.seed, Purpose.PERMUTATION, turn + 1, step.client_key).permutation(
        len(data)
    )
    rows = order[first : first + step.batch_size].tolist()
    return rows, data.tensors[0][rows], data.tensors[1][rows]


def attempts(spy: Spy) -> list[tuple[Place, dict[int, StepRequest], Answers[StepReply]]]:
    """Return each attempt at a step."""
    found = []
    for requests, answers in spy.exchanges:
        first = next(iter(requests.values()))
        if first.phase in (Phase.FORWARD, Phase.TRAIN):
            found.append(((first.id[1], first.id[2], first.id[3]), requests, answers))
    return found


def check_ledger(done: Run) -> None:
    """No example twice in a round; used and not seen are all of them; redrawn is counted."""
    data = data_sets()
    places = [place for place, _, _ in attempts(done.spy)]
    assert len(places) == len(set(places))
    used: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    redrawn: dict[int, int] = defaultdict(int)
    for place, requests, _ in attempts(done.spy):
        taken = done.books.steps.get(place)
        if taken is None:
            redrawn[place[0]] += sum(request.id.batch_size for request in requests.values())
            continue
        for request in requests.values():
            key = request.id.client_key
            if key in taken.clients:
                assert taken.clients[key] == request.id.batch_size
                used[place[0]][key] += examples_of(request.id, data[key])[0]
        assert taken.effective_batch_size == sum(taken.clients.values())
    for rows in (rows for clients in used.values() for rows in clients.values()):
        assert len(rows) == len(set(rows))
    for record in done.books.rounds[1:]:
        counts = {key: len(rows) for key, rows in used[record.server_round].items()}
        assert sum(counts.values()) + record.not_seen == sum(COUNTS.values())
        assert record.redrawn == redrawn[record.server_round]
        for key, share in record.inclusion.items():
            assert share == counts.get(key, 0) / COUNTS[key]
    steps = [place[2] for place in done.books.steps if place[0] == 1]
    assert steps == list(range(1, len(steps) + 1))


def assert_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)


def check_whole_model(done: Run) -> None:
    """Take the steps that were taken in one model with one optimizer."""
    data, model = data_sets(), build()
    optimizer = sgd(model.parameters())
    for place, requests, answers in attempts(done.spy):
        record = done.books.steps.get(place)
        if record is None:
            continue
        parts = []
        for node, request in requests.items():
            assert_close(request.weights, dict(model[:2].named_parameters()))
            if node in record.clients:
                _, inputs, labels = examples_of(request.id, data[node])
                activations = answers.replies[node].activations
                assert activations is not None
                torch.testing.assert_close(activations, model[:2](inputs))
                parts.append((inputs, labels))
        inputs, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    if done.result is not None:
        assert_close(done.result.arrays.to_torch_state_dict(), model.state_dict())


@dataclass
class Device:
    """A client's own segment, as it must be after what came of its requests."""

    segment: nn.Module
    examples: int = 0
    settled: StepId | None = None
    # By step: the activations with their graph, and the gradient of its own loss by them.
    waiting: dict[StepId, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = sgd(self.segment.parameters())

    def settle(self, step: StepId, gradient: Tensor) -> None:
        if step == self.settled:
            return
        activations, expected = self.waiting.pop(step)
        torch.testing.assert_close(gradient, expected)
        self.optimizer.zero_grad()
        activations.backward(expected)  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.settled = step


class LocalAccount:
    """What must come of a run in which clients train by themselves, exchange by exchange."""

    def __init__(self, done: Run) -> None:
        self._books = done.books
        self._data = data_sets()
        self._server = build()[2:]
        self._optimizer = sgd(self._server.parameters())
        self._devices: dict[int, Device] = {}
        self.common: nn.Module = build()[:2]
        for requests, answers in done.spy.exchanges:
            phase = next(iter(requests.values())).phase
            if phase is Phase.TRAIN:
                self._train(requests, answers)
            elif phase is not Phase.EVALUATE:
                self._finish(requests, answers)

    def state_dict(self) -> dict[str, Tensor]:
        server = {f"2.{name.split('.')[-1]}": p for name, p in self._server.named_parameters()}
        return {**dict(self.common.named_parameters()), **server}

    def _arrived(self, requests: Mapping[int, StepRequest], answers: Answers[StepReply]) -> None:
        """Take in what requests that were answered brought."""
        for node in answers.replies:
            request = requests[node]
            if request.weights:
                assert_close(request.weights, dict(self.common.named_parameters()))
                self._devices[node] = Device(copy.deepcopy(self.common))
            elif request.settles is not None and request.gradient is not None:
                self._devices[node].settle(request.settles, request.gradient)

    def _train(self, requests: Mapping[int, StepRequest], answers: Answers[StepReply]) -> None:
        self._arrived(requests, answers)
        first = next(iter(requests.values())).id
        record = self._books.steps.get((first[1], first[2], first[3]))
        if record is None:
            return
        leaves, labels, outputs = [], [], []
        for node in record.clients:
            _, inputs, label = examples_of(requests[node].id, self._data[node])
            output = self._devices[node].segment(inputs)
            activations = answers.replies[node].activations
            assert activations is not None
            torch.testing.assert_close(activations, output)
            outputs.append(output)
            leaves.append(output.detach().requires_grad_())
            labels.append(label)
        self._optimizer.zero_grad()
        loss = cross_entropy(self._server(torch.cat(leaves)), torch.cat(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
        for node, leaf, output in zip(record.clients, leaves, outputs, strict=True):
            assert leaf.grad is not None
            own = leaf.grad * (record.effective_batch_size / len(leaf))
            self._devices[node].waiting[requests[node].id] = (output, own)
            self._devices[node].examples += len(leaf)

    def _finish(self, requests: Mapping[int, StepRequest], answers: Answers[StepReply]) -> None:
        self._arrived(requests, answers)
        came = {}
        for node, reply in answers.replies.items():
            own = dict(self._devices[node].segment.named_parameters())
            if reply.phase is Phase.COLLECT and _same(reply.weights, own):
                came[node] = self._devices[node]
        total = sum(device.examples for device in came.values())
        if total:
            parameters = [dict(device.segment.named_parameters()) for device in came.values()]
            shares = [device.examples / total for device in came.values()]
            with torch.no_grad():
                for name, parameter in self.common.named_parameters():
                    parameter.zero_()
                    for part, share in zip(parameters, shares, strict=True):
                        parameter.add_(part[name], alpha=share)


def _same(ours: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return set(ours) == set(own) and all(
        ours[name].shape == tensor.shape
        and ours[name].dtype == tensor.dtype
        and torch.allclose(ours[name], tensor, rtol=1e-9, atol=1e-11)
        for name, tensor in own.items()
    )


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_whatever_happens_no_example_and_no_gradient_is_wrong(mode: tuple[str, str]) -> None:
    sync, update = mode
    faults: Counter[Fault] = Counter()
    corruptions: Counter[Corruption | None] = Counter()
    completed = 0
    for seed in range(MODES.index(mode), NUM_SEEDS, len(MODES)):
        done = run(seed, sync, update)
        faults.update(injection.fault for injection in done.injected)
        corruptions.update(injection.corruption for injection in done.injected)
        completed += done.result is not None
        try:
            check(done, sync, update)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert set(faults) == set(Fault)
    assert len({*CORRUPTIONS} - {*corruptions}) <= 1  # each is rare in a mode
    assert completed >= LEAST_COMPLETED


def check(done: Run, sync: str, update: str) -> None:
    """Hold a run against its account."""
    if done.result is None:
        assert isinstance(done.error, (ClientError, WaitError, ProtocolError))
        assert re.search(ENDS, str(done.error)), done.error
    check_ledger(done)
    if sync == "step":
        check_whole_model(done)
    elif update == "global-batch":
        account = LocalAccount(done).state_dict()
        if done.result is not None:
            arrays = done.result.arrays.to_torch_state_dict()
            assert_close(arrays, {name: account[name] for name in arrays})
