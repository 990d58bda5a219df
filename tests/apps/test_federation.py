from typing import TYPE_CHECKING

import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from apps.image_classification import federation as module
from apps.image_classification.federation import Federation
from flower_psl import ClientError, ConfigError, WaitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import FakeGrid, FakeTime

# Nodes by id: client key, examples, and the loss that they report.
NODES = {31: (2, 4, 1.0), 32: (0, 0, 9.0), 33: (5, 12, 3.0), 34: (1, 8, 2.0)}


@pytest.fixture(autouse=True)
def no_waiting(fake_time: "FakeTime", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", fake_time)


def node(key: int, num_examples: int, loss: float) -> "Callable[[Message], Message]":
    def answer(message: Message) -> Message:
        if message.metadata.message_type == MessageType.QUERY:
            about = ConfigRecord({"client-key": key, "num-examples": num_examples})
            return Message(RecordDict({"about": about}), reply_to=message)
        metrics = MetricRecord({"loss": loss, "num-examples": num_examples})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return answer


def fails(message: Message) -> Message:
    return Message(Error(2, "no data here"), reply_to=message)


@pytest.fixture
def grid(fake_grid: "type[FakeGrid]") -> "FakeGrid":
    return fake_grid({each: node(*about) for each, about in NODES.items()})


def gather(grid: "FakeGrid", min_nodes: int = 4) -> Federation:
    return Federation.gather(grid, min_nodes=min_nodes, node_timeout_s=3.0, timeout_s=5.0)


def training(federation: Federation, nodes: list[int] | None = None) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    ids = federation.get_node_ids() if nodes is None else nodes
    return [Message(content, each, MessageType.TRAIN) for each in ids]


def test_devices_with_data_take_part_in_the_order_of_their_keys(grid: "FakeGrid") -> None:
    federation = gather(grid)
    assert list(federation.get_node_ids()) == [34, 31, 33]
    assert federation.num_examples == {1: 8, 2: 4, 5: 12}


def test_replies_come_in_that_order_and_are_measured(grid: "FakeGrid") -> None:
    federation = gather(grid)
    assert federation.trained is None
    sent = training(federation, [33, 31, 34])
    replies = list(federation.send_and_receive(sent))
    assert [reply.metadata.src_node_id for reply in replies] == [34, 31, 33]
    trained = federation.trained
    assert trained is not None
    assert trained.num_examples == {1: 8, 2: 4, 5: 12}
    assert trained.mean("loss") == pytest.approx((8 * 2 + 4 * 1 + 12 * 3) / 24)
    sizes = [sum(record.count_bytes() for record in each.content.values()) for each in sent]
    assert trained.bytes_down == sum(sizes) > 0
    assert trained.bytes_up == sum(reply.content["metrics"].count_bytes() for reply in replies)


def test_evaluation_is_not_training(grid: "FakeGrid") -> None:
    federation = gather(grid)
    content = RecordDict({"arrays": ArrayRecord()})
    federation.send_and_receive([Message(content, 31, MessageType.EVALUATE)])
    assert list(federation.send_and_receive([])) == []
    assert federation.trained is None


def test_a_strategy_can_do_without_some_devices_but_not_without_all(grid: "FakeGrid") -> None:
    federation = gather(grid)
    grid.nodes[31] = fails
    replies = list(federation.send_and_receive(training(federation)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert federation.trained is not None
    assert list(federation.trained.contents) == [1, 5]
    grid.nodes = dict.fromkeys(grid.nodes, fails)
    with pytest.raises(
        ClientError,
        match=r"none of 3 devices returned .*; node 34, client 1, failed: no data here",
    ):
        federation.send_and_receive(training(federation))
    grid.nodes = dict.fromkeys(grid.nodes, lambda message: None)
    with pytest.raises(ClientError, match=r"none of 3 devices returned .*; none answered in time"):
        federation.send_and_receive(training(federation), timeout=2.0)


def test_where_all_have_to_answer_one_that_does_not_ends_the_run(grid: "FakeGrid") -> None:
    federation = gather(grid)
    grid.nodes[33] = fails
    with pytest.raises(ClientError, match="node 33, client 5, failed: no data here"):
        federation.converse(training(federation), 2.0)
    grid.nodes[33] = lambda message: None
    with pytest.raises(WaitError, match=r"2 of 3 devices answered within 2 s; .*step-timeout-s"):
        federation.converse(training(federation), 2.0)


def test_too_few_nodes_are_awaited_for_a_while(grid: "FakeGrid", fake_time: "FakeTime") -> None:
    with pytest.raises(WaitError, match=r"4 nodes after 3 s; min-available-nodes is 5. Start"):
        gather(grid, min_nodes=5)
    assert 3.0 <= sum(fake_time.slept_s) < 3.2


def test_two_devices_with_the_same_data_are_refused(grid: "FakeGrid") -> None:
    grid.nodes[35] = node(5, 3, 0.0)
    with pytest.raises(ConfigError, match="two nodes have partition-id = 5; start each SuperNode"):
        gather(grid)


def test_no_data_at_all_are_refused(grid: "FakeGrid") -> None:
    grid.nodes = {31: node(0, 0, 0.0), 32: node(1, 0, 0.0)}
    with pytest.raises(ConfigError, match="none of 2 devices has training data; raise max-train"):
        gather(grid, min_nodes=2)


def test_a_device_that_cannot_say_what_it_has_ends_the_run(grid: "FakeGrid") -> None:
    grid.nodes[33] = fails
    with pytest.raises(ClientError, match="node 33 failed: no data here"):
        gather(grid)
