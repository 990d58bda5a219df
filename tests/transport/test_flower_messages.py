from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict

from flower_psl import ClientError, ProtocolError, WaitError
from flower_psl.transport.flower_messages import FlowerMessageTransport
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, records

if TYPE_CHECKING:
    from tests.conftest import Answer, FakeGrid, FakeTime

NODES = {30: 1, 10: 2, 20: 3}  # node id: client key


@pytest.fixture(autouse=True)
def no_sleeping(monkeypatch: pytest.MonkeyPatch, fake_time: "FakeTime") -> None:
    monkeypatch.setattr("flower_psl.transport.flower_messages.time", fake_time)


def step_id(client_key: int) -> StepId:
    return StepId(
        seed=0, server_round=2, plan=0, step=40, client_key=client_key, start=0, batch_size=1
    )


def requests(nodes: Iterable[int] = NODES, phase: Phase = Phase.FORWARD) -> dict[int, StepRequest]:
    weights = {"w": torch.rand(2)}
    return {
        node: StepRequest(phase=phase, id=step_id(NODES[node]), weights=weights) for node in nodes
    }


def echo(message: Message) -> Message:
    """Answer with activations that name the client."""
    request = records.decode_request(message.content)
    reply = StepReply(
        phase=request.phase,
        id=request.id,
        activations=torch.tensor([float(request.id.client_key)]),
        labels=torch.tensor([0]),
    )
    return Message(records.encode_reply(reply), reply_to=message)


def describe(message: Message) -> Message:
    reply = DescribeReply(
        client_key=NODES[message.metadata.dst_node_id],
        num_examples=4,
        num_test_examples=0,
        segment={},
    )
    return Message(records.encode_description(reply), reply_to=message)


def silent(message: Message) -> None:
    return None


def failing(message: Message) -> Message:
    return Message(Error(code=2, reason="  out of memory\n"), reply_to=message)


def garbled(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def confused(message: Message) -> Message:
    request = records.decode_request(message.content)
    reply = StepReply(phase=request.phase, id=request.id._replace(step=39))
    return Message(records.encode_reply(reply), reply_to=message)


def answers(default: "Answer" = echo, **others: "Answer") -> "dict[int, Answer]":
    """Return what each node does; `node_10=failing` changes one."""
    return {node: others.get(f"node_{node}", default) for node in NODES}


def clients(replies: Mapping[int, StepReply]) -> dict[int, int]:
    return {node: reply.id.client_key for node, reply in replies.items()}


def test_nodes_are_in_order(fake_grid: "type[FakeGrid]") -> None:
    assert FlowerMessageTransport(fake_grid(answers())).nodes() == [10, 20, 30]


def test_every_node_describes_itself(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers(describe))
    replies = FlowerMessageTransport(grid).describe([20, 10], timeout_s=5)
    assert {node: reply.client_key for node, reply in replies.items()} == {20: 3, 10: 2}
    assert {message.metadata.message_type for message in grid.pushed} == {"query.psl_describe"}


@pytest.mark.parametrize(
    ("phase", "message_type"),
    [(Phase.FORWARD, "train.psl_step"), (Phase.EVALUATE, "evaluate.psl_step")],
)
def test_each_node_answers_its_own_request(
    fake_grid: "type[FakeGrid]", phase: Phase, message_type: str
) -> None:
    grid = fake_grid(answers())
    replies = FlowerMessageTransport(grid).exchange(requests(phase=phase), timeout_s=5)
    assert list(clients(replies).items()) == list(NODES.items())
    assert {message.metadata.message_type for message in grid.pushed} == {message_type}
    for node, reply in replies.items():
        assert reply.activations is not None
        assert reply.activations.item() == NODES[node]


def test_a_backward_request_carries_its_gradient(fake_grid: "type[FakeGrid]") -> None:
    request = StepRequest(phase=Phase.BACKWARD, id=step_id(1), gradient=torch.tensor([[2.0]]))
    grid = fake_grid(answers())
    FlowerMessageTransport(grid).exchange({30: request}, timeout_s=5)
    sent = records.decode_request(grid.pushed[0].content)
    assert grid.pushed[0].metadata.message_type == "train.psl_step"
    assert sent.gradient is not None
    assert sent.gradient.tolist() == [[2.0]]


def test_messages_outlive_the_wait_for_them(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers())
    FlowerMessageTransport(grid).exchange(requests(), timeout_s=300)
    assert {message.metadata.ttl for message in grid.pushed} == {360}


def test_weights_are_encoded_once_an_exchange(
    fake_grid: "type[FakeGrid]", monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[ArrayRecord] = []
    encode = records.encode_tensors

    def count(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
        record = encode(tensors)
        encoded.extend([record] if "w" in tensors else [])
        return record

    monkeypatch.setattr(records, "encode_tensors", count)
    grid = fake_grid(answers())
    FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert len(encoded) == 1
    assert all(message.content["weights"] is encoded[0] for message in grid.pushed)


def test_replies_may_come_in_any_order_and_at_any_time(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    class Slow(fake_grid):  # type: ignore[misc, valid-type]
        def pull(self, asked: list[Message]) -> list[Message]:
            # Nothing at first, then one a poll, the last one first.
            return [] if len(self.pulls) < 3 else [echo(asked[-1])]

    grid = Slow(answers())
    replies = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert list(clients(replies).items()) == list(NODES.items())
    assert [len(ids) for ids in grid.pulls] == [3, 3, 3, 2, 1]
    assert len(fake_time.slept_s) == 4


@pytest.mark.parametrize("again", [echo, failing])
def test_a_reply_that_comes_twice_counts_once(
    fake_grid: "type[FakeGrid]", again: Callable[[Message], Message]
) -> None:
    class Twice(fake_grid):  # type: ignore[misc, valid-type]
        def pull(self, asked: list[Message]) -> list[Message]:
            first = self.pushed[0]
            if len(self.pulls) == 1:
                return [echo(first), again(first)]
            return [again(first), *(echo(message) for message in asked)]

    replies = FlowerMessageTransport(Twice(answers())).exchange(requests(), timeout_s=5)
    assert clients(replies) == NODES


def test_a_late_reply_ends_the_wait_by_name(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    grid, started = fake_grid(answers(node_10=silent)), fake_time.now_s
    with pytest.raises(
        WaitError,
        match=r"within 5 s from node 10, client 2, round 2, step 40\. Look .* step_timeout_s",
    ):
        FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert 5 <= fake_time.now_s - started <= 5.25


def test_the_last_poll_is_at_the_deadline(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    class JustInTime(fake_grid):  # type: ignore[misc, valid-type]
        def pull(self, asked: list[Message]) -> list[Message]:
            late = fake_time.now_s >= 1005
            return [echo(message) for message in asked] if late else []

    replies = FlowerMessageTransport(JustInTime(answers())).exchange(requests(), timeout_s=5)
    assert clients(replies) == NODES


def test_many_missing_nodes_are_counted(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(dict.fromkeys(range(5), silent))
    with pytest.raises(
        WaitError, match=r"node 0, describing itself; node 1, .*; node 2, .* and 2 more\. Look"
    ):
        FlowerMessageTransport(grid).describe(range(5), timeout_s=1)


def test_an_error_ends_the_exchange_at_once(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    grid = fake_grid(answers(silent, node_20=failing))
    with pytest.raises(
        ClientError,
        match=r"node 20, client 3, round 2, step 40: the client failed \(Flower's error 2\): "
        r"out of memory$",
    ):
        FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert fake_time.slept_s == []


def test_an_error_without_a_reason_is_told(fake_grid: "type[FakeGrid]") -> None:
    def mute(message: Message) -> Message:
        return Message(Error(code=1), reply_to=message)

    with pytest.raises(ClientError, match=r"node 10, describing itself: .* 1\): no reason given$"):
        FlowerMessageTransport(fake_grid({10: mute})).describe([10], timeout_s=5)


def test_a_reply_that_is_none_of_ours_is_refused(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers(node_30=garbled))
    with pytest.raises(ProtocolError, match="node 30, client 1, round 2, step 40: the message"):
        FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)


def test_a_reply_to_another_step_is_refused(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers(node_30=confused))
    with pytest.raises(ProtocolError, match="client 1, round 2, step 40: asked for forward"):
        FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)


def test_messages_that_the_superlink_does_not_take_are_refused(
    fake_grid: "type[FakeGrid]",
) -> None:
    class Full(fake_grid):  # type: ignore[misc, valid-type]
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return list(super().push_messages(messages))[:-1]

    with pytest.raises(
        ClientError, match=r"took 2 of 3 messages, for nodes \[30, 10, 20\];.*Look"
    ):
        FlowerMessageTransport(Full(answers())).exchange(requests(), timeout_s=5)
