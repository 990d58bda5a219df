import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flower_psl import FailurePolicy, ProtocolError, SplitClient, SplitModel, cut
from flower_psl.server.client_aggregation import ClientAggregation, ClientMean
from flower_psl.server.learner import Learner
from flower_psl.server.local_step import LocalStep
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates import SERVER_UPDATES
from flower_psl.split import LossFn, ModuleIndex, trained_tensors
from flower_psl.transport import Answers, InProcessTransport
from flower_psl.wire import Phase, StepId, StepReply, StepRequest


def sgd(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


FIRST = StepPlan(server_round=1, step=1, batch_sizes={2: 3, 5: 1}, starts={2: 0, 5: 0})
SECOND = StepPlan(server_round=1, step=2, batch_sizes={2: 2, 9: 4}, starts={2: 3, 9: 0})
LATER = StepPlan(server_round=2, step=1, batch_sizes={5: 2, 9: 2}, starts={5: 4, 9: 10})


@dataclass
class Spy(InProcessTransport):
    """Keeps what was asked, and may change what is answered."""

    clients: Mapping[int, SplitClient]
    lie: Callable[[StepReply], StepReply] = lambda reply: reply
    exchanges: list[dict[int, StepRequest]] = field(default_factory=list)
    announced: list[dict[int, StepId]] = field(default_factory=list)

    def __post_init__(self) -> None:
        InProcessTransport.__init__(self, self.clients)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        self.exchanges.append(dict(requests))
        replies = super().exchange(requests, timeout_s).all()
        return Answers({node: self.lie(reply) for node, reply in replies.items()}, {})

    def announce(self, steps: Mapping[int, StepId]) -> None:
        self.announced.append(dict(steps))


def stepper(
    split: SplitModel,
    transport: Spy,
    aggregation: ClientAggregation | None,
    loss_fn: LossFn = cross_entropy,
) -> LocalStep:
    learner = Learner(split, sgd, None, total_steps=1, max_grad_norm=None, server_only=True)
    return LocalStep(
        transport=transport,
        nodes={key: key for key in transport.clients},
        learner=learner,
        loss_fn=loss_fn,
        seed=11,
        device=torch.device("cpu"),
        update=SERVER_UPDATES["global-batch"](learner, ServerForward(loss_fn=loss_fn, seed=11)),
        aggregation=aggregation,
    )


def one_second() -> float:
    return 1.0


def asked(transport: Spy) -> list[dict[int, tuple[Phase, bool, int | None]]]:
    """Return, by exchange and client: the phase, whether there are weights, what is settled."""
    return [
        {
            node: (r.phase, bool(r.weights), None if r.settles is None else r.settles.step)
            for node, r in requests.items()
        }
        for requests in transport.exchanges
    ]


def test_a_step_is_one_exchange_and_a_gradient_comes_with_the_next_request(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    transport = Spy(clients)
    step = stepper(split, transport, ClientMean())
    step.run(FIRST, one_second, SECOND)
    step.run(SECOND, one_second)
    step.run(LATER, one_second)
    assert asked(transport) == [
        {2: (Phase.TRAIN, True, None), 5: (Phase.TRAIN, True, None)},
        # Client 5 sits out the step; client 2 gets its gradient.
        {2: (Phase.TRAIN, False, 1), 9: (Phase.TRAIN, True, None)},
        {2: (Phase.COLLECT, False, 2), 5: (Phase.COLLECT, False, 1), 9: (Phase.COLLECT, False, 2)},
        {5: (Phase.TRAIN, True, None), 9: (Phase.TRAIN, True, None)},
        {5: (Phase.COLLECT, False, 1), 9: (Phase.COLLECT, False, 1)},
    ]
    assert [list(steps) for steps in transport.announced] == [[2, 9]]
    assert step.apart == frozenset()


def test_a_client_that_keeps_its_segment_gets_weights_once(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    before = copy.deepcopy(split.client.state_dict())
    transport = Spy(clients)
    step = stepper(split, transport, None)
    step.run(FIRST, one_second)
    step.run(LATER, one_second)
    assert asked(transport) == [
        {2: (Phase.TRAIN, True, None), 5: (Phase.TRAIN, True, None)},
        {2: (Phase.SETTLE, False, 1), 5: (Phase.SETTLE, False, 1)},
        {5: (Phase.TRAIN, False, None), 9: (Phase.TRAIN, True, None)},
        {5: (Phase.SETTLE, False, 1), 9: (Phase.SETTLE, False, 1)},
    ]
    assert step.apart == {2, 5, 9}
    assert all(torch.equal(split.client.state_dict()[name], before[name]) for name in before)


class Weighing(ClientMean):
    """Keeps who weighed how much in which round."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[int, float]]] = []

    def aggregate(
        self,
        server_round: int,
        current: Mapping[str, Tensor],
        trained: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, float],
    ) -> Mapping[str, Tensor]:
        assert list(trained) == list(weights)
        self.seen.append((server_round, dict(weights)))
        return super().aggregate(server_round, current, trained, weights)


def test_clients_weigh_as_much_as_their_examples_of_the_round(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    step = stepper(split, Spy(clients), weighing := Weighing())
    step.run(FIRST, one_second, SECOND)
    step.run(SECOND, one_second)
    step.run(LATER, one_second)
    assert weighing.seen == [(1, {2: 5, 5: 1, 9: 4}), (2, {5: 2, 9: 2})]


def test_a_client_whose_labels_were_all_ignored_has_no_part_in_the_mean(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    ignoring = nn.CrossEntropyLoss(ignore_index=-1)
    everybody, others = (
        lambda reply: reply,
        lambda reply: (
            replace(reply, labels=torch.full_like(reply.labels, -1))
            if reply.id.client_key == 5 and reply.labels is not None
            else reply
        ),
    )
    seen = []
    for lie in (everybody, others):
        step = stepper(split, spy := Spy(clients, lie), weighing := Weighing(), ignoring)
        step.run(FIRST, one_second)
        seen.append((weighing.seen, list(spy.exchanges[-1])))
    assert seen == [([(1, {2: 3, 5: 1})], [2, 5]), ([(1, {2: 3})], [2])]


def test_the_record_counts_the_end_of_the_round_too(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    step = stepper(split, Spy(clients), ClientMean())
    first = step.run(FIRST, one_second, SECOND).record
    second = step.run(SECOND, one_second).record
    assert first is not None
    assert second is not None
    weights, example, label = 8 * (6 * 8 + 8), 8 * 8, 8
    assert (first.effective_batch_size, first.clients) == (4, FIRST.batch_sizes)
    assert first.bytes_down == 2 * weights
    assert first.bytes_up == 4 * (example + label)
    # Client 2's gradient of 3 examples and client 9's weights; then all gradients that are left.
    assert second.bytes_down == 3 * example + weights + (2 + 1 + 4) * example
    assert second.bytes_up == 6 * (example + label) + 3 * weights
    assert list(second.client_seconds) == [2, 9, 5]
    assert second.seconds["total"] > 0


def test_a_frozen_segment_is_left_alone(
    split: SplitModel, train_sets: dict[int, TensorDataset]
) -> None:
    split.client.requires_grad_(False)
    before = copy.deepcopy(split.state_dict())

    class Never(ClientMean):
        def aggregate(self, *args: object, **kwargs: object) -> Mapping[str, Tensor]:
            raise NotImplementedError

    assert trained_tensors(ModuleIndex(split.client)) == {}
    frozen = {
        key: SplitClient(split.client, data, optimizer_fn=sgd) for key, data in train_sets.items()
    }
    stepper(split, Spy(frozen), Never()).run(FIRST, one_second)
    assert torch.equal(split.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(split.state_dict()["2.weight"], before["2.weight"])


def test_weights_that_do_not_fit_name_their_client(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def lie(reply: StepReply) -> StepReply:
        if reply.phase is not Phase.COLLECT or reply.id.client_key != 5:
            return reply
        return replace(reply, weights={"0.bias": reply.weights["0.bias"]})

    before = copy.deepcopy(split.client.state_dict())
    outcome = stepper(split, Spy(clients, lie), ClientMean()).run(FIRST, one_second)
    [(key, failure)] = outcome.failures.items()
    assert key == 5
    assert isinstance(failure, ProtocolError)
    assert re.search(r"client 5, round 1, step 1: .* add \['0.weight'\]", str(failure))
    assert outcome.record is not None
    assert not all(torch.equal(split.client.state_dict()[name], before[name]) for name in before)


def norm_stepper(
    data: Mapping[int, TensorDataset], lie: Callable[[Tensor], Tensor], **policy: Any
) -> LocalStep:
    """Return a step with BatchNorm on devices, where client 5 lies about its running variance."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    split = cut(model, at="1")

    def answer(reply: StepReply) -> StepReply:
        if reply.phase is not Phase.COLLECT or reply.id.client_key != 5:
            return reply
        name = "1.running_var"
        return replace(reply, weights={**reply.weights, name: lie(reply.weights[name])})

    clients = {
        key: SplitClient(split.client, each, optimizer_fn=sgd) for key, each in data.items()
    }
    step = stepper(split, Spy(clients, answer), ClientMean())
    return replace(step, failures=FailurePolicy(**policy))


@pytest.mark.parametrize(
    ("lie", "policy", "reason"),
    [
        (torch.neg, {}, r"its '1.running_var' has the value -\d.*; a variance or a count is 0"),
        (
            lambda x: x * 1e9,
            {"max_update_norm": 1e3},
            "adds to the update has the norm .*e.09; Fa",
        ),
    ],
)
def test_running_statistics_that_would_ruin_the_model_are_left_out(
    lie: Callable[[Tensor], Tensor],
    policy: Any,
    reason: str,
    train_sets: dict[int, TensorDataset],
) -> None:
    step = norm_stepper(train_sets, lie, **policy)
    plan = replace(FIRST, batch_sizes={2: 3, 5: 2})
    outcome = step.run(plan, one_second)
    [(key, failure)] = outcome.failures.items()
    assert key == 5
    assert re.search(f"client 5, round 1, step 1: .*{reason}", str(failure))
    variance = step.learner.model.state_dict()["1.running_var"]
    assert bool(((0 <= variance) & (variance < 1e3)).all())
    honest = norm_stepper(train_sets, lambda x: x, **policy)
    assert honest.run(plan, one_second).failures == {}
