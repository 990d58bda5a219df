from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from flower_psl import ClientError, ConfigError, CutError, ProtocolError
from flower_psl.transport import InProcessTransport
from flower_psl.transport.transport import DeviceGroup
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest


class Recorder:
    """Answers as it should, and keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.requests: list[StepRequest] = []

    def describe(self) -> DescribeReply:
        return DescribeReply(client_key=None, num_examples=4, num_test_examples=0, segment={})

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        return StepReply(phase=request.phase, id=request.id)


def request(client_key: int) -> StepRequest:
    step_id = StepId(
        seed=0, server_round=2, plan=0, step=3, client_key=client_key, start=0, batch_size=1
    )
    return StepRequest(phase=Phase.FORWARD, id=step_id, weights={"w": torch.zeros(1)})


def test_nodes_are_the_client_keys_in_order() -> None:
    assert InProcessTransport({5: Recorder(), 0: Recorder(), 3: Recorder()}).nodes() == [0, 3, 5]


def test_a_client_is_described_under_its_key_here() -> None:
    transport = InProcessTransport({5: Recorder(), 0: Recorder()})
    descriptions = transport.describe([5], timeout_s=1).all()
    assert {node: reply.client_key for node, reply in descriptions.items()} == {5: 5}


@pytest.mark.parametrize("error", [OSError("no disk"), ProtocolError("no disk")])
def test_a_client_that_cannot_describe_itself_is_named(error: Exception) -> None:
    class Mute(Recorder):
        def describe(self) -> DescribeReply:
            raise error

    transport = InProcessTransport({0: Recorder(), 4: Mute()})
    answers = transport.describe([4, 0], timeout_s=1)
    failure = answers.failures[4]
    assert isinstance(failure, ClientError)
    assert str(failure) == f"client 4, describing itself, raised {type(error).__name__}: no disk"
    assert failure.__cause__ is error
    assert list(answers.replies) == [0]  # which was asked after it


def test_replies_come_in_the_order_of_the_requests() -> None:
    clients = {5: Recorder(), 0: Recorder()}
    requests = {5: request(5), 0: request(0)}
    replies = InProcessTransport(clients).exchange(requests, timeout_s=1).all()
    assert [(node, reply.id) for node, reply in replies.items()] == [
        (5, requests[5].id),
        (0, requests[0].id),
    ]
    assert clients[5].requests[0] is requests[5]


def test_an_error_names_client_round_and_step() -> None:
    transport = InProcessTransport({4: Recorder(RuntimeError("no memory")), 5: Recorder()})
    answers = transport.exchange({4: request(4), 5: request(5)}, timeout_s=1)
    failure = answers.failures[4]
    assert isinstance(failure, ClientError)
    assert str(failure) == "client 4, round 2, step 3: the client raised RuntimeError: no memory"
    assert isinstance(failure.__cause__, RuntimeError)
    assert list(answers.replies) == [5]  # which was asked after it


def test_an_error_of_ours_in_the_client_names_it_as_well() -> None:
    transport = InProcessTransport({4: Recorder(CutError("two outputs"))})
    with pytest.raises(ClientError, match=r"client 4, round 2, step 3: .*CutError: two outputs"):
        transport.exchange({4: request(4)}, timeout_s=1).all()


def test_a_protocol_error_passes_as_it_is() -> None:
    error = ProtocolError("client 4, round 2, step 3: too many examples")
    with pytest.raises(ProtocolError) as raised:
        InProcessTransport({4: Recorder(error)}).exchange({4: request(4)}, timeout_s=1).all()
    assert raised.value is error


def test_a_reply_to_something_else_is_refused() -> None:
    class Confused(Recorder):
        def handle(self, request: StepRequest) -> StepReply:
            return StepReply(phase=request.phase, id=request.id._replace(step=9))

    with pytest.raises(ProtocolError, match="client 4, round 2, step 3: asked for forward"):
        InProcessTransport({4: Confused()}).exchange({4: request(4)}, timeout_s=1).all()


def test_no_clients_are_refused() -> None:
    with pytest.raises(ConfigError, match="clients is empty; give at least one"):
        InProcessTransport({})


@pytest.mark.parametrize("key", [-1, "0", 1.0, True])
def test_a_key_that_is_not_one_is_refused(key: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"client key {key!r}; a key is an integer of 0 or more"
    ):
        InProcessTransport({key: Recorder()})


class Group:
    """Answers together as it should, and keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.exchanges: list[list[StepRequest]] = []

    def handle(self, requests: Sequence[StepRequest]) -> list[StepReply]:
        if self.error is not None:
            raise self.error
        self.exchanges.append(list(requests))
        return [StepReply(phase=request.phase, id=request.id) for request in requests]


class Fusable(Recorder):
    group: DeviceGroup
    fused: Mapping[int, object]

    @classmethod
    def fuse(cls, clients: Mapping[int, object]) -> DeviceGroup:
        cls.fused = clients
        return cls.group


def test_fused_clients_are_called_once_for_a_step() -> None:
    group = Fusable.group = Group()
    clients = {5: Fusable(), 0: Fusable(), 3: Fusable()}
    transport = InProcessTransport(clients, fuse=True)
    assert dict(Fusable.fused) == clients
    requests = {5: request(5), 0: request(0)}
    replies = transport.exchange(requests, timeout_s=1).all()
    assert [(node, reply.id.client_key) for node, reply in replies.items()] == [(5, 5), (0, 0)]
    assert group.exchanges == [[requests[5], requests[0]]]


def test_fused_clients_evaluate_one_by_one() -> None:
    group = Fusable.group = Group()
    clients = {5: Fusable(), 0: Fusable()}
    asked = {key: replace(request(key), phase=Phase.EVALUATE) for key in clients}
    InProcessTransport(clients, fuse=True).exchange(asked, timeout_s=1)
    assert group.exchanges == []
    assert all(clients[key].requests == [asked[key]] for key in clients)


def test_an_error_of_fused_clients_names_one_and_their_number() -> None:
    Fusable.group = Group(RuntimeError("no memory"))
    transport = InProcessTransport({4: Fusable(), 6: Fusable()}, fuse=True)
    failures = transport.exchange({4: request(4), 6: request(6)}, timeout_s=1).failures
    assert list(failures) == [4, 6]
    assert failures[4] is failures[6]
    assert isinstance(failures[4], ClientError)
    assert str(failures[4]) == (
        "client 4, round 2, step 3, fused with 1 other clients: raised RuntimeError: no memory"
    )
    assert isinstance(failures[4].__cause__, RuntimeError)


def test_fused_clients_fail_together_by_an_error_that_says_it_all() -> None:
    error = ProtocolError("client 4: no")
    Fusable.group = Group(error)
    transport = InProcessTransport({4: Fusable(), 6: Fusable()}, fuse=True)
    answers = transport.exchange({4: request(4), 6: request(6)}, timeout_s=1)
    assert (answers.replies, answers.failures) == ({}, {4: error, 6: error})


def test_what_no_client_can_change_is_raised() -> None:
    Fusable.group = Group(ConfigError("layer '1' draws"))
    with pytest.raises(ConfigError, match="layer '1' draws"):
        InProcessTransport({4: Fusable()}, fuse=True).exchange({4: request(4)}, timeout_s=1)


def test_a_fused_reply_to_something_else_is_refused() -> None:
    class Confused(Group):
        def handle(self, requests: Sequence[StepRequest]) -> list[StepReply]:
            return super().handle(requests)[::-1]

    Fusable.group = Confused()
    transport = InProcessTransport({4: Fusable(), 6: Fusable()}, fuse=True)
    with pytest.raises(ProtocolError, match="client 4, round 2, step 3: asked for forward"):
        transport.exchange({4: request(4), 6: request(6)}, timeout_s=1).all()


def test_clients_that_cannot_be_fused_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"client 4 is a Recorder, which cannot be fused; clients that run as one have a "
        "method fuse, as SplitClient has. Leave out fuse_clients",
    ):
        InProcessTransport({4: Recorder()}, fuse=True)
