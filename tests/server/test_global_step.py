import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from flower_psl import (
    ClientError,
    ConfigError,
    FailurePolicy,
    ProtocolError,
    PslError,
    SplitClient,
    SplitModel,
    WaitError,
    cut,
)
from flower_psl.sampling import Purpose, generator
from flower_psl.server.global_step import GlobalStep
from flower_psl.server.learner import Learner
from flower_psl.server.overlapped_step import OverlappedStep
from flower_psl.server.step_plan import StepPlan
from flower_psl.split import LossFn
from flower_psl.telemetry import StepRecord
from flower_psl.transport import Answers, Device, InProcessTransport
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest

PLAN = StepPlan(server_round=2, step=3, batch_sizes={2: 3, 5: 1, 9: 4}, starts={2: 7, 5: 6, 9: 16})
Lie = Callable[[StepReply], StepReply]
# What takes the steps of a test; see `both_kinds`.
KIND: type[GlobalStep] = GlobalStep
only_for_the_whole = pytest.mark.parametrize("both_kinds", [GlobalStep], indirect=True)


@pytest.fixture(autouse=True, params=[GlobalStep, OverlappedStep])
def both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test hold for the step that waits for all parts, and for the one that does not."""
    monkeypatch.setitem(globals(), "KIND", request.param)


def one_second() -> float:
    return 1.0


@dataclass
class Liar:
    """Passes on what an honest client says, but for one phase."""

    honest: Device
    phase: Phase
    lie: Lie

    def describe(self) -> DescribeReply:
        return self.honest.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        reply = self.honest.handle(request)
        return self.lie(reply) if request.phase is self.phase else reply


def stepper(
    split: SplitModel, clients: Mapping[int, Device], loss_fn: LossFn = cross_entropy
) -> GlobalStep:
    def optimizer_fn(parameters: Iterable[nn.Parameter]) -> SGD:
        return SGD(parameters, lr=0.1)

    return KIND(
        transport=InProcessTransport(clients),
        nodes={key: key for key in clients},
        learner=Learner(split, optimizer_fn, None, total_steps=1, max_grad_norm=None),
        loss_fn=loss_fn,
        seed=11,
        device=torch.device("cpu"),
    )


def taken(
    step: GlobalStep, plan: StepPlan = PLAN, timeout_s: Callable[[], float] = one_second
) -> StepRecord:
    """Take a step that nothing is wrong with."""
    outcome = step.run(plan, timeout_s)
    assert outcome.failures == {}
    assert outcome.record is not None
    return outcome.record


def failures(step: GlobalStep) -> dict[int, PslError]:
    """Try to take a step, which is discarded."""
    outcome = step.run(PLAN, one_second)
    assert outcome.record is None
    return dict(outcome.failures)


def lie(
    clients: Mapping[int, Device], key: int, phase: Phase, change: Callable[[StepReply], Any]
) -> dict[int, Device]:
    return {**clients, key: Liar(clients[key], phase, change)}


def shaped(reply: StepReply, name: str, change: Callable[[Tensor], Tensor]) -> StepReply:
    tensor = getattr(reply, name)
    fields: dict[str, Any] = {name: change(tensor)}
    return replace(reply, **fields)


def global_batch(train_sets: Mapping[int, Any]) -> tuple[Tensor, Tensor]:
    """Return the examples of the plan, from each client's permutation."""
    inputs, labels = [], []
    for key, size in PLAN.batch_sizes.items():
        data = train_sets[key]
        order = generator(11, Purpose.PERMUTATION, PLAN.server_round, key).permutation(len(data))
        first = PLAN.starts[key] % len(data)
        rows = order[first : first + size]
        inputs.append(data.tensors[0][rows])
        labels.append(data.tensors[1][rows])
    return torch.cat(inputs), torch.cat(labels)


def test_steps_are_those_of_centralized_training(
    split: SplitModel, clients: dict[int, SplitClient], train_sets: dict[int, Any]
) -> None:
    reference = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    reference.load_state_dict(split.state_dict())
    optimizer = SGD(reference.parameters(), lr=0.1)
    ours = stepper(split, clients)
    inputs, labels = global_batch(train_sets)
    for _ in range(2):
        record = taken(ours)
        loss = cross_entropy(reference(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, tensor in split.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-12, atol=1e-14)


def test_the_bound_is_asked_for_before_each_exchange(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    events: list[str | float] = []

    class Bounded(InProcessTransport):
        def exchange(
            self, requests: Mapping[int, StepRequest], timeout_s: float
        ) -> Answers[StepReply]:
            events.append(timeout_s)
            answers = super().exchange(requests, timeout_s)
            events.extend({str(reply.phase) for reply in answers.replies.values()})
            return answers

    left_s = iter([5.0, 3.0])

    def ask() -> float:
        events.append("asked")
        return next(left_s)

    replace(stepper(split, clients), transport=Bounded(clients)).run(PLAN, ask)
    assert events == ["asked", 5.0, "forward", "asked", 3.0, "backward"]


def test_a_bound_that_is_used_up_between_the_exchanges_ends_the_step(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    before = copy.deepcopy(split.state_dict())
    left_s = iter([5.0])

    def ask() -> float:
        try:
            return next(left_s)
        except StopIteration:
            raise WaitError("the round took too long") from None

    with pytest.raises(WaitError, match="the round took too long"):
        stepper(split, clients).run(PLAN, ask)
    for key, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_a_layer_right_behind_the_cut_may_work_in_place(
    train_sets: dict[int, Any],
) -> None:
    def build() -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()

    reference, split = build(), cut(build(), at="0")
    clients = {
        key: SplitClient(cut(build(), at="0").client, data) for key, data in train_sets.items()
    }
    record = taken(stepper(split, clients))
    inputs, labels = global_batch(train_sets)
    loss = cross_entropy(reference(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    SGD(reference.parameters(), lr=0.1).step()
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, tensor in split.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-12, atol=1e-14)


@only_for_the_whole
def test_random_layers_of_the_server_draw_anew_in_every_step(
    model: nn.Sequential, clients: dict[int, SplitClient]
) -> None:
    model.insert(2, nn.Dropout(0.5))
    split = cut(model, at="1")

    def loss(step: int) -> float:
        plan = replace(PLAN, step=step)
        return taken(stepper(copy.deepcopy(split), clients), plan).loss

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_the_record_counts_what_happened(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    record = taken(stepper(split, clients))
    assert (record.server_round, record.step) == (2, 3)
    assert (record.effective_batch_size, record.clients) == (8, PLAN.batch_sizes)
    weights = 8 * (6 * 8 + 8)  # of one client, float64
    activations, labels = 8 * 8 * 8, 8 * 8
    assert record.bytes_down == 3 * weights + activations
    assert record.bytes_up == activations + labels + 3 * weights
    assert set(record.seconds) == {
        "encode",
        "decode",
        "forward_exchange",
        "server_forward",
        "server_backward",
        "backward_exchange",
        "update",
        "total",
        "client_compute",
        "client_encode",
        "transfer",
    }
    within = ("client_compute", "client_encode", "transfer")
    laps = [seconds for name, seconds in record.seconds.items() if name not in within]
    assert 2 * record.seconds["total"] == pytest.approx(sum(laps))
    assert list(record.client_seconds) == list(PLAN.batch_sizes)
    exchanged = record.seconds["forward_exchange"] + record.seconds["backward_exchange"]
    assert sum(record.seconds[name] for name in within) == pytest.approx(exchanged)


def test_a_frozen_client_segment_gets_no_gradient(
    model: nn.Sequential, clients: dict[int, SplitClient]
) -> None:
    model[0].requires_grad_(False)
    split = cut(model, at="1")
    asked: list[Phase] = []

    def keep(request: StepRequest) -> StepReply:
        asked.append(request.phase)
        return clients[2].handle(request)

    frozen: dict[int, Device] = {**clients, 2: _Handler(keep)}
    record = taken(stepper(split, frozen))
    assert asked == [Phase.FORWARD]
    assert record.bytes_up == 8 * 8 * 8 + 8 * 8
    assert record.bytes_down == 3 * 8 * 56


@dataclass
class _Handler:
    handle: Callable[[StepRequest], StepReply]

    def describe(self) -> DescribeReply:
        raise NotImplementedError

    def prepare(self, step: StepId) -> None:
        raise NotImplementedError


def grow(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


def poison(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


WHERE = "client 9, round 2, step 3: "


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("activations", grow, "5 activations for a batch of 4"),
        ("labels", grow, "5 labels for a batch of 4"),
        ("activations", poison, "the activations have NaN or infinite values"),
        (
            "activations",
            lambda x: x[:, :7],
            r"its activations are torch.float64 \(7,\) an example, but torch.float64 \(8,\) at "
            r"client 2; all clients must agree\. Give them the same model",
        ),
        ("activations", lambda x: x.float(), "its activations are torch.float32 .*torch.float64"),
        ("activations", lambda x: x.long(), "the activations are torch.int64; gradients flow"),
        ("labels", lambda y: y.int(), r"its labels are torch.int32 \(\) an example"),
        ("labels", lambda y: y[:, None], r"its labels are torch.int64 \(1,\) an example"),
        ("labels", lambda y: y + 3, r"label \d; the model has 3 outputs, so .* 0 to 2"),
    ],
)
def test_a_batch_that_does_not_fit_names_its_client(
    split: SplitModel,
    clients: dict[int, SplitClient],
    name: str,
    change: Callable[[Tensor], Tensor],
    text: str,
) -> None:
    before = copy.deepcopy(split.state_dict())
    lying = lie(clients, 9, Phase.FORWARD, lambda reply: shaped(reply, name, change))
    [(key, failure)] = failures(stepper(split, lying)).items()
    assert key == 9
    assert isinstance(failure, ProtocolError)
    assert re.search(WHERE + text, str(failure))
    for part, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[part])


@pytest.mark.parametrize(("key", "other"), [(2, 5), (5, 2), (9, 2)])
def test_the_odd_one_out_is_named_wherever_it_is_beside_one_it_differs_from(
    split: SplitModel, clients: dict[int, SplitClient], key: int, other: int
) -> None:
    lying = lie(clients, key, Phase.FORWARD, lambda r: shaped(r, "labels", torch.Tensor.short))
    [(named, failure)] = failures(stepper(split, lying)).items()
    assert named == key
    assert re.search(
        rf"client {key}, round 2, step 3: its labels are torch.int16 .* at client {other};",
        str(failure),
    )


@pytest.mark.parametrize(
    ("gradients", "text"),
    [
        (lambda g: {"0.weight": g["0.weight"]}, r"no gradient for \['0.bias'\]; a reply has one"),
        (lambda g: {}, r"no gradient for \['0.bias', '0.weight'\]; .* the 2 trainable"),
        (lambda g: g | {"head.weight": g["0.bias"]}, "a gradient for 'head.weight'"),
        (lambda g: g | {"0.bias": g["0.bias"][:7]}, r"'0.bias' is torch.float64 \(7,\), the par"),
        (lambda g: g | {"0.bias": g["0.bias"].float()}, "'0.bias' is torch.float32"),
        (lambda g: g | {"0.bias": poison(g["0.bias"])}, "'0.bias' has NaN or infinite"),
    ],
)
def test_gradients_that_do_not_fit_name_their_client(
    split: SplitModel,
    clients: dict[int, SplitClient],
    gradients: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    text: str,
) -> None:
    lying = lie(
        clients,
        9,
        Phase.BACKWARD,
        lambda reply: replace(reply, gradients=gradients(dict(reply.gradients))),
    )
    before = copy.deepcopy(split.state_dict())
    [(key, failure)] = failures(stepper(split, lying)).items()
    assert key == 9
    assert re.search(WHERE + ".*" + text, str(failure))
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_parameter_that_no_client_uses_keeps_its_value(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def without_bias(reply: StepReply) -> StepReply:
        return replace(
            reply, gradients={"0.weight": reply.gradients["0.weight"]}, unused=("0.bias",)
        )

    before = copy.deepcopy(split.state_dict())
    partial: dict[int, Device] = {
        key: Liar(client, Phase.BACKWARD, without_bias) for key, client in clients.items()
    }
    taken(stepper(split, partial))
    after = split.state_dict()
    assert [name for name in after if torch.equal(after[name], before[name])] == ["0.bias"]
    assert split.client.get_parameter("0.bias").grad is None


def test_moments_that_do_not_fit_name_their_client(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    lying = lie(
        clients,
        9,
        Phase.FORWARD,
        lambda reply: replace(reply, moments={"bn.mean": torch.zeros(1, 8)}),
    )
    [(key, failure)] = failures(stepper(split, lying)).items()
    assert key == 9
    assert re.search(WHERE + r"BatchNorm moments for \['bn.mean'\]", str(failure))


def test_a_reply_to_another_step_is_refused(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    lying = lie(
        clients, 9, Phase.BACKWARD, lambda reply: replace(reply, id=reply.id._replace(step=2))
    )
    [(key, failure)] = failures(stepper(split, lying)).items()
    assert key == 9
    assert isinstance(failure, ProtocolError)
    assert re.search(WHERE + "asked for backward", str(failure))


def test_a_client_that_raises_is_named(split: SplitModel, clients: dict[int, SplitClient]) -> None:
    def crash(request: StepRequest) -> StepReply:
        raise MemoryError("out of memory")

    [(key, failure)] = failures(stepper(split, {**clients, 9: _Handler(crash)})).items()
    assert key == 9
    assert isinstance(failure, ClientError)
    assert re.search(WHERE + "the client raised MemoryError: out of memory", str(failure))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_ends_the_run(
    split: SplitModel, clients: dict[int, SplitClient], value: float
) -> None:
    def diverged(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum() * value

    with pytest.raises(
        PslError,
        match=r"round 2, step 3: the loss is .*; it must be finite\. Lower the learning rate .* "
        "and look for batches in which every label is ignored",
    ):
        stepper(split, clients, diverged).run(PLAN, one_second)


def test_a_loss_that_does_not_fit_says_what_it_got(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    first = replace(PLAN, server_round=1, step=1)
    with pytest.raises(
        PslError,
        match=r"round 1, step 1: .* ValueError: .* activations \(8,\) .* and labels \(8,\); check",
    ):
        stepper(split, clients, nn.BCEWithLogitsLoss()).run(first, one_second)


def test_after_steps_that_were_taken_it_is_the_clients_whose_values_do_not_fit(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    found = failures(stepper(split, clients, nn.BCEWithLogitsLoss()))
    for key, size in PLAN.batch_sizes.items():
        assert re.search(
            rf"^client {key}, round 2, step 3: .* ValueError: .* and labels \({size},\); check",
            str(found[key]),
        )


def test_the_one_for_whom_the_loss_raises_is_named(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def fussy(outputs: Tensor, labels: Tensor) -> Tensor:
        if bool((labels > 2).any()):
            raise KeyError("no such label")
        return cross_entropy(outputs, labels)

    lying = lie(clients, 5, Phase.FORWARD, lambda r: shaped(r, "labels", lambda y: y + 9))
    [(key, failure)] = failures(stepper(split, lying, fussy)).items()
    assert key == 5
    assert "client 5, round 2, step 3: the server segment or the loss raised KeyError" in str(
        failure
    )


def test_a_loss_that_is_no_scalar_is_refused(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    with pytest.raises(ConfigError, match=r"loss_fn returned \(8,\); the loss is one scalar"):
        stepper(split, clients, nn.CrossEntropyLoss(reduction="none")).run(PLAN, one_second)


def policy(step: GlobalStep, **changes: Any) -> GlobalStep:
    return replace(step, failures=FailurePolicy(**changes))


def test_a_quorum_takes_the_step_as_the_mean_over_those_that_are_there(
    split: SplitModel, clients: dict[int, SplitClient], train_sets: dict[int, Any]
) -> None:
    reference = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    reference.load_state_dict(split.state_dict())
    inputs, labels = global_batch(train_sets)
    there = [0, 1, 2, 4, 5, 6, 7]  # all but that of client 5
    loss = cross_entropy(reference(inputs[there]), labels[there])
    loss.backward()  # type: ignore[no-untyped-call]
    SGD(reference.parameters(), lr=0.1).step()
    lying = lie(clients, 5, Phase.FORWARD, lambda r: shaped(r, "activations", poison))
    outcome = policy(stepper(split, lying), quorum=0.875).run(PLAN, one_second)
    assert list(outcome.failures) == [5]
    assert outcome.record is not None
    assert (outcome.record.effective_batch_size, outcome.record.clients) == (7, {2: 3, 9: 4})
    assert outcome.record.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, tensor in split.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("quorum", "key"), [(0.876, 5), (0.51, 9), (1.0, 5)])
def test_with_less_than_the_quorum_a_step_is_discarded(
    split: SplitModel, clients: dict[int, SplitClient], quorum: float, key: int
) -> None:
    before = copy.deepcopy(split.state_dict())
    lying = lie(clients, key, Phase.FORWARD, lambda r: shaped(r, "activations", poison))
    outcome = policy(stepper(split, lying), quorum=quorum).run(PLAN, one_second)
    assert outcome.record is None
    assert list(outcome.failures) == [key]
    assert outcome.bytes_down == 3 * 8 * (6 * 8 + 8)
    assert outcome.bytes_up == 8 * 8 * 8 + 8 * 8
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])


@only_for_the_whole
def test_a_gradient_that_misses_a_part_is_never_used(
    train_sets: dict[int, Any],
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    split = cut(model, at="0")
    clients = {key: SplitClient(copy.deepcopy(split.client), d) for key, d in train_sets.items()}
    before = copy.deepcopy(split.state_dict())

    def vanish(reply: StepReply) -> StepReply:
        raise ConnectionError("gone")

    lying = lie(clients, 5, Phase.BACKWARD, vanish)
    outcome = policy(stepper(split, lying), quorum=0.1).run(PLAN, one_second)
    assert outcome.record is None
    assert list(outcome.failures) == [5]
    # The server's BatchNorm has seen the batch, and is put back.
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("bound", "phase", "text"),
    [
        ("max_activation_norm", Phase.FORWARD, "an example's activations have the norm 8"),
        ("max_update_norm", Phase.BACKWARD, "what it adds to the update has the norm "),
    ],
)
def test_norms_above_their_bound_name_their_client(
    split: SplitModel, clients: dict[int, SplitClient], bound: str, phase: Phase, text: str
) -> None:
    def huge(reply: StepReply) -> StepReply:
        if reply.activations is not None:
            return replace(reply, activations=torch.ones_like(reply.activations) * 8**0.5)
        return replace(reply, gradients={k: g * 1e6 for k, g in reply.gradients.items()})

    lying = lie(clients, 9, phase, huge)
    outcome = policy(stepper(split, lying), **{bound: 7.9}).run(PLAN, one_second)
    assert list(outcome.failures) == [9]
    assert re.search(f"{WHERE}{text}.*; FailurePolicy.{bound} is 7.9", str(outcome.failures[9]))
    assert policy(stepper(split, clients), **{bound: 7.9}).run(PLAN, one_second).failures == {}


def test_who_makes_the_loss_infinite_is_named(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    lying = lie(
        clients, 9, Phase.FORWARD, lambda r: shaped(r, "activations", lambda x: x.sign() * 1.7e308)
    )
    [(key, failure)] = failures(stepper(split, lying)).items()
    assert key == 9
    assert re.search(
        WHERE + ".*outputs for its activations, or their loss, are not finite, .*max_act",
        str(failure),
    )


def test_batch_norm_that_runs_unequally_often_names_the_odd_one(
    train_sets: dict[int, Any],
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    split = cut(model, at="1")
    clients = {key: SplitClient(copy.deepcopy(split.client), d) for key, d in train_sets.items()}

    def twice(reply: StepReply) -> StepReply:
        return replace(
            reply, moments={name: torch.cat([m, m]) for name, m in reply.moments.items()}
        )

    plan = replace(PLAN, batch_sizes={2: 3, 5: 2, 9: 4})
    outcome = stepper(split, lie(clients, 9, Phase.FORWARD, twice)).run(plan, one_second)
    [(key, failure)] = outcome.failures.items()
    assert key == 9
    assert re.search(WHERE + "BatchNorm '1' ran 2 times .* but 1 times at client 2", str(failure))
