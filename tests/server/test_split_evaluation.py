import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

from flower_psl import ClientError, ProtocolError, PslError, SplitClient, SplitModel, cut
from flower_psl.server.split_evaluation import SplitEvaluation, sample_clients
from flower_psl.split import LossFn, ModuleIndex
from flower_psl.transport import Device, InProcessTransport
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest

COUNTS = {2: 3, 5: 0, 9: 5}


@dataclass
class Watched:
    """A client whose requests are kept, and whose replies may be changed."""

    client: Device
    change: Callable[[StepReply], StepReply] = field(default=lambda reply: reply)
    requests: list[StepRequest] = field(default_factory=list)

    def describe(self) -> DescribeReply:
        return self.client.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        self.requests.append(request)
        return self.change(self.client.handle(request))


def evaluate(
    split: SplitModel,
    clients: Mapping[int, Device],
    *,
    keys: list[int] | None = None,
    batch_size: int = 4,
    loss_fn: LossFn = cross_entropy,
) -> dict[str, Any]:
    metrics, failures = attempt(split, clients, keys=keys, batch_size=batch_size, loss_fn=loss_fn)
    assert failures == {}
    return metrics


def attempt(
    split: SplitModel,
    clients: Mapping[int, Device],
    *,
    keys: list[int] | None = None,
    batch_size: int = 4,
    loss_fn: LossFn = cross_entropy,
) -> tuple[dict[str, Any], dict[int, PslError]]:
    evaluation = SplitEvaluation(
        transport=InProcessTransport(clients),
        nodes={key: key for key in COUNTS},
        num_examples=COUNTS,
        loss_fn=loss_fn,
        batch_size=batch_size,
        seed=0,
        device=torch.device("cpu"),
    )
    weights = ModuleIndex(split.client).tensors
    return evaluation.run(
        split, weights, [2, 9] if keys is None else keys, server_round=1, timeout_s=1
    )


def pooled(test_sets: Mapping[int, TensorDataset], keys: list[int]) -> tuple[Tensor, Tensor]:
    parts = [test_sets[key].tensors for key in keys]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
@pytest.mark.parametrize("keys", [[2], [9], [2, 9]])
def test_it_is_the_whole_model_on_the_pooled_test_data(
    split: SplitModel,
    clients: dict[int, SplitClient],
    test_sets: dict[int, TensorDataset],
    batch_size: int,
    keys: list[int],
) -> None:
    metrics = evaluate(split, clients, keys=keys, batch_size=batch_size)
    inputs, labels = pooled(test_sets, keys)
    outputs = split(inputs)
    assert metrics["num-examples"] == len(labels)
    assert metrics["loss"] == pytest.approx(float(cross_entropy(outputs, labels).detach()))
    assert metrics["accuracy"] == pytest.approx(
        float((outputs.argmax(1) == labels).double().mean())
    )


def test_layers_are_in_evaluation_mode(test_sets: dict[int, TensorDataset]) -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
    ).double()
    split = cut(model, at="2")
    clients = {
        key: SplitClient(copy.deepcopy(split.client), test_sets[key], test_sets[key])
        for key in COUNTS
    }
    before = copy.deepcopy(split.state_dict())
    first, again = evaluate(split, clients), evaluate(split, clients)
    inputs, labels = pooled(test_sets, [2, 9])
    expected = cross_entropy(model.eval()(inputs), labels)
    assert first == again
    assert first["loss"] == pytest.approx(float(expected.detach()))
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_each_client_goes_through_its_data_once(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    watched = {key: Watched(client) for key, client in clients.items()}
    evaluate(split, watched, batch_size=2)
    asked = {
        key: [(request.id.start, request.id.batch_size) for request in each.requests]
        for key, each in watched.items()
    }
    assert asked == {2: [(0, 2), (2, 1)], 5: [], 9: [(0, 2), (2, 2), (4, 1)]}


def test_no_graph_is_kept(split: SplitModel, clients: dict[int, SplitClient]) -> None:
    seen: list[bool] = []

    def spy(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(outputs.requires_grad)
        return cross_entropy(outputs, labels)

    evaluate(split, clients, loss_fn=spy)
    assert seen
    assert not any(seen)


def test_there_is_no_accuracy_without_class_indices(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def one_hot(reply: StepReply) -> StepReply:
        assert reply.labels is not None
        return replace(reply, labels=nn.functional.one_hot(reply.labels, 3).double())

    metrics = evaluate(
        split, {key: Watched(client, one_hot) for key, client in clients.items()}, loss_fn=mse_loss
    )
    assert set(metrics) == {"loss", "num-examples"}


def ignoring(label: int, rows: slice) -> Callable[[StepReply], StepReply]:
    """Put a label in place of some in every batch."""

    def change(reply: StepReply) -> StepReply:
        assert reply.labels is not None
        labels = reply.labels.clone()
        labels[rows] = label
        return replace(reply, labels=labels)

    return change


@pytest.mark.parametrize(
    ("loss_fn", "label"),
    [
        (cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=1), 1),
        (nn.CrossEntropyLoss(reduction="sum"), -100),
    ],
)
@pytest.mark.parametrize("batch_size", [2, 100])
def test_ignored_labels_do_not_count(
    split: SplitModel,
    clients: dict[int, SplitClient],
    test_sets: dict[int, TensorDataset],
    loss_fn: LossFn,
    label: int,
    batch_size: int,
) -> None:
    # The first of every batch; with batches of two, the last batch is all ignored.
    watched = {
        key: Watched(client, ignoring(label, slice(0, 1))) for key, client in clients.items()
    }
    metrics = evaluate(split, watched, batch_size=batch_size, loss_fn=loss_fn)
    losses, hits, num_examples = [], [], 0
    for key in (2, 9):
        inputs, labels = test_sets[key].tensors
        for row, (x, y) in enumerate(zip(inputs, labels, strict=True)):
            num_examples += 1
            if row % batch_size == 0 or y == label:
                continue
            output = split(x[None])
            losses.append(float(cross_entropy(output, y[None]).detach()))
            hits.append(bool(output.argmax() == y))
    assert metrics["num-examples"] == num_examples == 8
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses))
    assert metrics["accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_without_a_label_that_counts_there_is_no_loss(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    watched = {
        key: Watched(client, ignoring(-100, slice(None))) for key, client in clients.items()
    }
    assert evaluate(split, watched) == {"num-examples": 8}


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), nn.MSELoss(reduction="sum")])
def test_a_sum_is_divided_by_the_examples(
    split: SplitModel,
    clients: dict[int, SplitClient],
    test_sets: dict[int, TensorDataset],
    loss_fn: nn.MSELoss,
) -> None:
    def one_hot(reply: StepReply) -> StepReply:
        assert reply.labels is not None
        return replace(reply, labels=nn.functional.one_hot(reply.labels, 3).double())

    watched = {key: Watched(client, one_hot) for key, client in clients.items()}
    metrics = evaluate(split, watched, loss_fn=loss_fn, batch_size=2)
    inputs, labels = pooled(test_sets, [2, 9])
    errors = (split(inputs) - nn.functional.one_hot(labels, 3)).square().detach()
    expected = errors.mean() if loss_fn.reduction == "mean" else errors.sum(1).mean()
    assert metrics["loss"] == pytest.approx(float(expected))


def test_labels_by_position_are_counted_by_position(
    clients: dict[int, SplitClient], test_sets: dict[int, TensorDataset]
) -> None:
    def two_positions(reply: StepReply) -> StepReply:
        assert reply.labels is not None
        second = torch.where(reply.labels == 0, -100, reply.labels)
        return replace(reply, labels=torch.stack([reply.labels, second], 1))

    model = nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (3, 2))
    ).double()
    watched = {key: Watched(client, two_positions) for key, client in clients.items()}
    metrics = evaluate(cut(model, at="1"), watched, batch_size=2)
    inputs, labels = pooled(test_sets, [2, 9])
    both = torch.stack([labels, torch.where(labels == 0, -100, labels)], 1)
    assert metrics == {
        "num-examples": 8,
        "loss": pytest.approx(float(cross_entropy(model(inputs), both).detach())),
    }


@pytest.mark.parametrize(
    ("loss_fn", "change", "text"),
    [
        (
            cross_entropy,
            lambda reply: replace(reply, activations=cast(Tensor, reply.activations)[:, :7]),
            r"RuntimeError: .*\. It got activations \(4, 7\) and labels \(4,\); check this client",
        ),
        (
            nn.BCEWithLogitsLoss(),
            lambda reply: reply,
            r"ValueError: .*\. It got activations \(4, 8\) and labels \(4,\); check this client",
        ),
    ],
)
def test_an_error_of_the_servers_part_names_client_and_round(
    split: SplitModel,
    clients: dict[int, SplitClient],
    loss_fn: LossFn,
    change: Callable[[StepReply], StepReply],
    text: str,
) -> None:
    where = "^client 9, evaluation after round 1: the server segment or the loss raised "
    _, failures = attempt(split, {9: Watched(clients[9], change)}, keys=[9], loss_fn=loss_fn)
    assert re.search(where + text, str(failures[9]))
    assert isinstance(failures[9].__cause__, (RuntimeError, ValueError))


def test_a_label_without_an_output_names_its_client(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def wrong(reply: StepReply) -> StepReply:
        return replace(reply, labels=torch.full((reply.id.batch_size,), 7))

    _, failures = attempt(split, {**clients, 9: Watched(clients[9], wrong)})
    assert list(failures) == [9]
    assert isinstance(failures[9], ProtocolError)
    assert "client 9, evaluation after round 1: label 7;" in str(failures[9])


def test_a_batch_that_does_not_fit_names_its_client(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    def short(reply: StepReply) -> StepReply:
        assert reply.labels is not None
        return replace(reply, labels=reply.labels[1:])

    metrics, failures = attempt(split, {**clients, 9: Watched(clients[9], short)})
    assert list(failures) == [9]
    assert isinstance(failures[9], ProtocolError)
    assert "client 9, round 1, step 1: 3 labels for a batch of 4" in str(failures[9])
    assert metrics["num-examples"] == COUNTS[2]


def test_a_client_that_fails_costs_the_rest_of_its_part(
    split: SplitModel, clients: dict[int, SplitClient], test_sets: dict[int, TensorDataset]
) -> None:
    def once(reply: StepReply) -> StepReply:
        if reply.id.start:
            raise OSError("the camera is gone")
        return reply

    watched = Watched(clients[9], once)
    metrics, failures = attempt(split, {**clients, 9: watched}, batch_size=2)
    assert isinstance(failures[9], ClientError)
    assert "client 9, round 1, step 2: the client raised OSError: the camera" in str(failures[9])
    assert [request.id.start for request in watched.requests] == [0, 2]
    inputs, labels = pooled(test_sets, [2, 9])
    inputs, labels = inputs[: COUNTS[2] + 2], labels[: COUNTS[2] + 2]
    assert metrics["num-examples"] == len(labels) == 5
    assert metrics["loss"] == pytest.approx(float(cross_entropy(split(inputs), labels).detach()))


def test_with_nobody_to_ask_nothing_is_evaluated(
    split: SplitModel, clients: dict[int, SplitClient]
) -> None:
    assert evaluate(split, clients, keys=[]) == {"num-examples": 0}


@given(
    counts=st.dictionaries(st.integers(0, 2**63 - 1), st.integers(0, 3), max_size=20),
    hundredths=st.integers(0, 100),
    server_round=st.integers(1, 50),
)
def test_a_share_of_those_with_test_data_is_sampled(
    counts: dict[int, int], hundredths: int, server_round: int
) -> None:
    keys = sample_clients(counts, hundredths / 100, 0, server_round)
    able = [key for key in counts if counts[key]]
    assert keys == sorted(set(keys))
    assert set(keys) <= set(able)
    assert len(keys) == -(-hundredths * len(able) // 100)
    assert keys == sample_clients(counts, hundredths / 100, 0, server_round)


def test_rounding_errors_do_not_add_a_client() -> None:
    assert len(sample_clients(dict.fromkeys(range(100), 1), 0.07, 0, 1)) == 7


def test_rounds_differ() -> None:
    samples = {
        tuple(sample_clients(dict.fromkeys(range(20), 1), 0.2, 0, server_round))
        for server_round in range(10)
    }
    assert len(samples) > 5
