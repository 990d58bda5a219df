from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict

from flower_psl import ClientError, ProtocolError, WaitError
from flower_psl.transport.flower_messages import FlowerMessageTransport, pull
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


@pytest.fixture
def grid_with_garbage(fake_grid: "type[FakeGrid]", monkeypatch: pytest.MonkeyPatch) -> "FakeGrid":
    """Return a grid that raises once at node 10's reply, and then says that it is gone.

    Node 30 answers at the same time, node 20 later.
    """
    grid = fake_grid(dict.fromkeys(NODES, echo))
    taken: set[int] = set()

    def pull(asked: list[Message]) -> list[Message]:
        gone = [
            Message(Error(code=202, reason="no such message"), reply_to=message)
            for message in asked
            if message.metadata.dst_node_id in taken
        ]
        if not taken:
            taken.update({10, 30})
            raise ValueError("Error parsing message\x1b")
        return gone + [
            echo(message) for message in asked if message.metadata.dst_node_id not in taken
        ]

    monkeypatch.setattr(grid, "pull", pull)
    return grid


def test_a_reply_that_flower_cannot_read_costs_those_that_came_with_it(
    grid_with_garbage: "FakeGrid", caplog: pytest.LogCaptureFixture
) -> None:
    answers = FlowerMessageTransport(grid_with_garbage).exchange(requests(), timeout_s=20)
    assert list(answers.replies) == [20]
    assert [type(failure) for failure in answers.failures.values()] == [ClientError] * 2
    assert "node 10, client 2, round 2, step 40: the client failed" in str(answers.failures[10])
    assert list(answers.failures) == [30, 10]
    [warning] = caplog.messages
    assert warning.startswith(
        r"Flower could not read a reply (ValueError: Error parsing message\x1b)"
    )


def test_a_grid_that_does_not_work_at_all_says_why(
    grid_with_garbage: "FakeGrid",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def pull(asked: list[Message]) -> list[Message]:
        raise ConnectionError("no SuperLink")

    monkeypatch.setattr(grid_with_garbage, "pull", pull)
    with pytest.raises(ConnectionError, match="no SuperLink"):
        FlowerMessageTransport(grid_with_garbage).exchange(requests(), timeout_s=20)
    assert len(grid_with_garbage.pulls) == 4  # once for each message, and once more
    assert caplog.messages == []  # no reply was the cause


def test_several_replies_that_flower_cannot_read_are_said_once(
    fake_grid: "type[FakeGrid]", caplog: pytest.LogCaptureFixture
) -> None:
    grid = fake_grid(dict.fromkeys(NODES, echo))
    problems = iter([ValueError("no array"), ValueError("no array"), KeyError("dtype")])

    def pull_messages(ids: Iterable[str]) -> Iterable[Message]:
        for problem in problems:
            raise problem
        return []

    grid.__dict__["pull_messages"] = pull_messages
    assert pull(grid, ["a", "b", "c", "d"]) == []
    [warning] = caplog.messages
    assert "could not read a reply (ValueError: no array; KeyError: 'dtype')" in warning


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
    replies = FlowerMessageTransport(grid).describe([20, 10], timeout_s=5).all()
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
    replies = FlowerMessageTransport(grid).exchange(requests(phase=phase), timeout_s=5).all()
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
    replies = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5).all()
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

    replies = FlowerMessageTransport(Twice(answers())).exchange(requests(), timeout_s=5).all()
    assert clients(replies) == NODES


def test_who_is_late_is_named_when_the_time_is_over(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    grid, started = fake_grid(answers(node_10=silent)), fake_time.now_s
    result = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert 5 <= fake_time.now_s - started <= 5.25
    assert clients(result.replies) == {30: 1, 20: 3}
    assert list(result.failures) == [10]
    failure = result.failures[10]
    assert isinstance(failure, WaitError)
    assert str(failure).startswith(
        "node 10, client 2, round 2, step 40: no reply within 5 s. Look"
    )
    assert "raise step_timeout_s" in str(failure)


def test_a_late_reply_is_dropped_and_until_then_its_node_is_busy(
    fake_grid: "type[FakeGrid]",
) -> None:
    nodes = answers(node_10=silent)
    grid = fake_grid(nodes)
    transport = FlowerMessageTransport(grid)
    late = transport.exchange(requests(), timeout_s=5)
    assert list(late.failures) == [10]
    assert transport.nodes() == [20, 30]
    # It is pulled with the replies to a later request, which it has nothing to do with.
    nodes[10] = echo
    assert clients(transport.exchange(requests([20]), timeout_s=5).all()) == {20: 3}
    assert len(grid.pulls[-1]) == 2
    assert transport.nodes() == [10, 20, 30]
    pulls = len(grid.pulls)
    assert clients(transport.exchange(requests(), timeout_s=5).all()) == NODES
    assert [len(ids) for ids in grid.pulls[pulls:]] == [3]


def test_who_can_be_reached_is_known_when_a_late_reply_has_come(
    fake_grid: "type[FakeGrid]",
) -> None:
    nodes = answers(node_10=silent)
    transport = FlowerMessageTransport(fake_grid(nodes))
    transport.exchange(requests(), timeout_s=5)
    nodes[10] = failing  # such as Flower's, when the message's time is over
    assert transport.nodes() == [10, 20, 30]


def test_the_last_poll_is_at_the_deadline(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    class JustInTime(fake_grid):  # type: ignore[misc, valid-type]
        def pull(self, asked: list[Message]) -> list[Message]:
            late = fake_time.now_s >= 1005
            return [echo(message) for message in asked] if late else []

    replies = FlowerMessageTransport(JustInTime(answers())).exchange(requests(), timeout_s=5)
    assert clients(replies.all()) == NODES


def test_an_error_does_not_shorten_the_wait_for_the_others(
    fake_grid: "type[FakeGrid]", fake_time: "FakeTime"
) -> None:
    class Slow(fake_grid):  # type: ignore[misc, valid-type]
        def pull(self, asked: list[Message]) -> list[Message]:
            replies: list[Message] = super().pull(asked)
            return replies if fake_time.now_s >= 1003 else replies[2:]

    grid = Slow(answers(node_20=failing))
    result = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert clients(result.replies) == {30: 1, 10: 2}
    assert list(result.failures) == [20]
    assert isinstance(result.failures[20], ClientError)
    assert str(result.failures[20]) == (
        "node 20, client 3, round 2, step 40: the client failed (Flower's error 2): out of memory"
    )


def test_an_error_without_a_reason_is_told(fake_grid: "type[FakeGrid]") -> None:
    def mute(message: Message) -> Message:
        return Message(Error(code=1), reply_to=message)

    with pytest.raises(ClientError, match=r"node 10, describing itself: .* 1\): no reason given$"):
        FlowerMessageTransport(fake_grid({10: mute})).describe([10], timeout_s=5).all()


def test_a_reply_that_is_none_of_ours_is_refused(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers(node_30=garbled))
    result = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert clients(result.replies) == {10: 2, 20: 3}
    failure = result.failures[30]
    assert isinstance(failure, ProtocolError)
    assert str(failure).startswith("node 30, client 1, round 2, step 40: the message")
    assert isinstance(failure.__cause__, ProtocolError)


def test_a_reply_to_another_step_is_refused(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid(answers(node_30=confused))
    result = FlowerMessageTransport(grid).exchange(requests(), timeout_s=5)
    assert clients(result.replies) == {10: 2, 20: 3}
    assert isinstance(result.failures[30], ProtocolError)
    assert "client 1, round 2, step 40: asked for forward" in str(result.failures[30])


@pytest.mark.parametrize("say_so", [None, "", "nothing"])
def test_a_message_that_the_superlink_does_not_take_fails_its_node(
    fake_grid: "type[FakeGrid]", say_so: str | None
) -> None:
    """Grids differ in what they return for it."""

    class Full(fake_grid):  # type: ignore[misc, valid-type]
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str | None]:
            _, *others = super().push_messages(messages)
            self.pushed.pop(0)
            return others if say_so == "nothing" else [say_so, *others]

    result = FlowerMessageTransport(Full(answers())).exchange(requests(), timeout_s=5)
    assert clients(result.replies) == {10: 2, 20: 3}
    failure = result.failures[30]
    assert isinstance(failure, ClientError)
    assert str(failure).startswith("node 30, client 1, round 2, step 40: the SuperLink did not")
    assert "Look at the SuperLink's log" in str(failure)
