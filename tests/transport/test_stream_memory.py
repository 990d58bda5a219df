"""Streams whose long tensors go through memory that both ends share."""

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from flower_psl.transport import stream_client, stream_server
from flower_psl.transport.shared_memory import SharedMemory, open_offered, pack_with, tensors_of
from flower_psl.wire import Phase, StepReply, StepRequest, frames, parts
from flower_psl.wire.frames import Frame, Kind
from flower_psl.wire.tensor_table import pack_tensors

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, Lab, MakeLab, RawStream

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory that is shared in this way"
)
SHAPE = (3, 10_000)
FRAME_BYTES = 2 * 10**6


def tensor(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def backward(lab: "Lab", *nodes: int, seed: int) -> dict[int, StepRequest]:
    """Return requests with a long gradient."""
    return {
        node: replace(request, phase=Phase.BACKWARD, weights={}, gradient=tensor(seed + node))
        for node, request in lab.requests(*nodes).items()
    }


def reply_to(request: StepRequest) -> StepReply:
    """Return twice the gradient as the gradient of a parameter."""
    assert request.gradient is not None
    return StepReply(phase=request.phase, id=request.id, gradients={"w": 2 * request.gradient})


def enter(lab: "Lab", node: int, *, opens: bool) -> tuple["RawStream", SharedMemory | None]:
    """Return a raw stream that is let in as a node, and the memory it came with."""
    stream = lab.raw(lab.hello(node))
    welcome = stream.read()
    assert welcome.kind is Kind.WELCOME
    memory = open_offered(welcome.values) if opens else None
    assert (memory is not None) is opens
    stream.send(frames.pack(Kind.OPENED, node, 0, {"opened": opens}))
    lab.await_nodes([node])
    if opens:
        while node not in lab.transport._memories:
            assert lab.transport.await_node(20.0)
    return stream, memory


def leave(lab: "Lab", stream: "RawStream", node: int) -> None:
    """Close a raw stream, and return when the server knows that its node has gone."""
    stream.close()
    while lab.server._nodes[node].connection is not None:
        lab.server.absent()  # asks the server's thread, and takes none of its arrivals


def answer(frame: Frame, memory: SharedMemory | None, echo: "Echo") -> bytes:
    """Return a device's reply to a frame that asks for one."""
    if memory is not None:
        memory.free(frame.sequence)
    tensors = tensors_of(frame, memory)
    reply = echo.handle(parts.request_of(frame.values, {}, tensors))
    values, tensors = parts.reply_config(reply), dict(parts.reply_tensors(reply))
    return pack_with(memory, Kind.REPLY, frame.node, frame.sequence, values, pack_tensors(tensors))


@pytest.mark.parametrize("opens", [True, False])
def test_long_tensors_go_through_memory_if_the_node_opened_it(
    make_lab: "MakeLab", make_echo: "type[Echo]", opens: bool
) -> None:
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    stream, memory = enter(lab, 1, opens=opens)
    with ThreadPoolExecutor(1) as pool:
        for seed in (1, 2, 3):
            requests = backward(lab, 1, seed=seed)
            exchange = pool.submit(lab.transport.exchange, requests, 20)
            frame = stream.read()
            assert bool(frame.in_memory_bytes) is opens
            data = answer(frame, memory, make_echo(1, reply_to))
            assert bool(frames.unpack(data).in_memory_bytes) is opens
            stream.send(data)
            gradients = exchange.result(20).all()[1].gradients
            assert torch.equal(gradients["w"], 2 * tensor(seed + 1))
    assert not lab.server.refused


@pytest.mark.parametrize("shared_memory", [True, False])
def test_devices_of_one_connection_each_have_their_own(
    make_lab: "MakeLab", make_echo: "type[Echo]", shared_memory: bool
) -> None:
    lab = make_lab(1, 2, 3, max_frame_bytes=FRAME_BYTES, shared_memory=shared_memory)
    lab.serve({node: make_echo(node, reply_to) for node in (1, 2)})
    lab.serve({3: make_echo(3, reply_to)})
    lab.transport.describe([1, 2, 3], 20).all()
    assert sorted(lab.transport._memories) == ([1, 2, 3] if shared_memory else [])
    for seed in (10, 20):
        replies = lab.transport.exchange(backward(lab, 1, 2, 3, seed=seed), 20).all()
        assert all(
            torch.equal(reply.gradients["w"], 2 * tensor(seed + node))
            for node, reply in replies.items()
        )


def test_a_device_that_cannot_open_it_is_served_over_the_connection(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[Mapping[str, object]] = []
    monkeypatch.setattr(stream_client, "open_offered", offered.append)
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    lab.serve({1: make_echo(1, reply_to)})
    replies = lab.transport.exchange(backward(lab, 1, seed=5), 20).all()
    assert torch.equal(replies[1].gradients["w"], 2 * tensor(6))
    assert len(offered) == 1
    assert not lab.transport._memories
    assert open_offered(offered[0]) is None  # nor is it kept for anybody else


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_a_request_reaches_who_comes_back_with_its_tensors(
    make_lab: "MakeLab", make_echo: "type[Echo]", breaks: str
) -> None:
    """That may be another process, and the request's tensors lie with the first."""
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    first, memory = enter(lab, 1, opens=True)
    assert memory is not None
    if breaks == "before":
        leave(lab, first, 1)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, backward(lab, 1, seed=1), 20)
        if breaks == "after":
            assert first.read().in_memory_bytes
            leave(lab, first, 1)
        while lab.server._nodes[1].outstanding is None:
            lab.server.absent()
        assert bytes(memory.received(120_000)) != bytes(120_000)  # it was put there
        second = lab.raw(lab.hello(1))
        assert second.read().kind is Kind.WELCOME
        frame = second.read()
        assert not frame.in_memory_bytes
        second.send(answer(frame, None, make_echo(1, reply_to)))
        gradients = exchange.result(20).all()[1].gradients
    assert torch.equal(gradients["w"], 2 * tensor(2))


def test_memory_is_left_alone_while_a_node_may_still_read_it(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    stream, memory = enter(lab, 1, opens=True)
    assert memory is not None
    echo = make_echo(1, reply_to)
    assert lab.transport.exchange(backward(lab, 1, seed=1), 0.0).failures  # nobody waits for it
    late = stream.read()
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, backward(lab, 1, seed=2), 20)
        frame = stream.read()
        assert late.in_memory_bytes and not frame.in_memory_bytes
        assert torch.equal(tensors_of(late, memory)["gradient"], tensor(2))
        stream.send(answer(late, memory, echo), answer(frame, memory, echo))
        assert torch.equal(exchange.result(20).all()[1].gradients["w"], 2 * tensor(3))
        # All has been answered, so it is used again.
        exchange = pool.submit(lab.transport.exchange, backward(lab, 1, seed=3), 20)
        frame = stream.read()
        assert frame.in_memory_bytes
        stream.send(answer(frame, memory, echo))
        assert torch.equal(exchange.result(20).all()[1].gradients["w"], 2 * tensor(4))


@pytest.mark.parametrize("in_memory_bytes", [2**40, 64, 900_000])
def test_a_lie_about_the_memory_is_an_unusable_answer(
    make_lab: "MakeLab", in_memory_bytes: int
) -> None:
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    stream, _ = enter(lab, 1, opens=in_memory_bytes != 64)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, backward(lab, 1, seed=1), 20)
        sequence = stream.read().sequence
        stream.send(frames.pack(Kind.REPLY, 1, sequence, {}, in_memory_bytes=in_memory_bytes))
        failure = exchange.result(20).failures[1]
    assert str(failure).startswith("node 1, client 1, round 2, step 40")
    assert "memory" in str(failure) or "cannot be read" in str(failure)


def test_memory_is_opened_once_and_only_if_it_was_offered(make_lab: "MakeLab") -> None:
    opened = frames.pack(Kind.OPENED, 1, 0, {"opened": True})
    lab = make_lab(1, shared_memory=False)
    stream = lab.raw(lab.hello(1))
    assert stream.read().values == {}
    stream.send(opened)
    stream.send(lab.hello(1))  # refused too; by then the other has been read
    while sum(lab.server.refused.values()) < 2:
        lab.transport.await_node(0.01)
    assert lab.server.refused == Counter(
        {"frame of a kind that nodes do not send": 1, "second connection of a node": 1}
    )
    other = make_lab(1, max_frame_bytes=FRAME_BYTES)
    stream, _ = enter(other, 1, opens=True)
    stream.send(opened, other.hello(1))
    while sum(other.server.refused.values()) < 2:
        other.transport.await_node(0.01)
    assert other.server.refused["frame of a kind that nodes do not send"] == 1


@pytest.mark.parametrize("of_this_machine", [True, False])
def test_memory_is_offered_to_peers_of_this_machine_only(
    make_lab: "MakeLab", of_this_machine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_server, "is_loopback_peer", lambda _: of_this_machine)
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    assert bool(lab.raw(lab.hello(1)).read().values) is of_this_machine


def test_what_is_lost_or_over_keeps_no_memory(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, max_frame_bytes=FRAME_BYTES, reconnect_timeout_s=0.2)
    stream, _ = enter(lab, 1, opens=True)
    serving = lab.serve({2: make_echo(2, reply_to)})
    lab.transport.describe([2], 20).all()
    stream.close()
    while lab.transport.nodes() != [2]:
        lab.transport.await_node(0.01)
    assert sorted(lab.transport._memories) == [2]
    assert lab.server._nodes[1].offered_or_shared is None
    assert serving.client._memories
    lab.server.goodbye()
    serving.answered()
    assert not serving.client._memories


def test_connections_that_end_leave_no_file_open(make_lab: "MakeLab") -> None:
    lab = make_lab(1, max_frame_bytes=FRAME_BYTES)
    stream = lab.raw_node(1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        leave(lab, stream, 1)
        stream = lab.raw_node(1)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
