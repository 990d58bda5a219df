"""What goes over a connection once for all its nodes, and what needs no answer."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from flower_psl import ClientError
from flower_psl.wire import StepId, StepRequest, frames
from flower_psl.wire.frames import Kind
from flower_psl.wire.tensor_table import Pieces

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, Lab, MakeLab, RawStream

AHEAD = StepId(0, 2, 0, 41, 1, 3, 3)


def exchange_in_background(lab: "Lab", *nodes: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1)
    pool.submit(lab.transport.exchange, lab.requests(*nodes), 20)
    pool.shutdown(wait=False)
    return pool


def come_back(lab: "Lab", node: int) -> "RawStream":
    """Connect again: until the server has noticed that the first is gone, it refuses."""
    while True:
        stream = lab.raw(lab.hello(node))
        try:
            assert stream.read().kind is Kind.WELCOME
        except grpc.RpcError:
            continue
        return stream


def test_shared_weights_go_over_a_connection_once(make_lab: "MakeLab") -> None:
    lab = make_lab(1, 2, 3)
    pair, single = lab.raw_node(1), lab.raw_node(3)
    pair.send(lab.hello(2))
    assert pair.read().kind is Kind.WELCOME
    lab.await_nodes([2])
    exchange_in_background(lab, 1, 2, 3)
    assert [pair.read().kind for _ in range(3)] == [Kind.WEIGHTS, Kind.REQUEST, Kind.REQUEST]
    assert [single.read().kind for _ in range(2)] == [Kind.WEIGHTS, Kind.REQUEST]


def test_weights_are_sent_again_to_a_node_that_comes_back(make_lab: "MakeLab") -> None:
    lab = make_lab(1)
    stream = lab.raw_node(1)
    exchange_in_background(lab, 1)
    sent = [stream.read() for _ in range(2)]
    stream.close()
    stream = come_back(lab, 1)
    assert [stream.read() for _ in range(2)] == sent


def test_clients_of_one_connection_get_weights_of_their_own(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    got: dict[int, float] = {}

    def keep(request: StepRequest) -> None:
        got[request.id.client_key] = request.weights["w"][0].item()

    lab = make_lab(1, 2)
    lab.serve({node: make_echo(node, during=keep) for node in (1, 2)})
    requests: dict[int, Any] = lab.requests(1, 2)
    for node, request in requests.items():
        request.__dict__["weights"] = {"w": torch.tensor([float(node)])}
    lab.transport.exchange(requests, timeout_s=20)
    assert got == {1: 1.0, 2: 2.0}


def test_a_request_without_its_weights_is_answered_with_an_error(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = frames.pack

    def another_sequence(
        kind: Kind,
        node: int,
        sequence: int,
        values: Mapping[str, object],
        tensors: Pieces = (),
    ) -> bytes:
        return pack(kind, node, 77 if kind is Kind.WEIGHTS else sequence, values, tensors)

    lab = make_lab(1)
    lab.serve({1: make_echo(1)})
    monkeypatch.setattr(frames, "pack", another_sequence)
    with pytest.raises(ClientError, match=r"node 1, .* came with the weights of 77; .* same flow"):
        lab.exchange(1)


def test_a_node_hears_of_its_next_step_and_others_of_nothing(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab, echoes = make_lab(1, 2, 3), {node: make_echo(node) for node in (1, 2)}
    lab.serve(echoes)
    lab.transport.announce({1: AHEAD, 3: AHEAD})  # the third has not connected
    for _ in range(2):  # it is loaded behind the first answer, and before the second
        assert lab.exchange(1, 2) == {1: 1.0, 2: 2.0}
    assert (echoes[1].prepared, echoes[2].prepared) == ([AHEAD], [])


def test_a_device_that_cannot_prepare_is_asked_all_the_same(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: StepId) -> None:
        raise OSError("no disk")

    lab, echo = make_lab(1), make_echo(1)
    monkeypatch.setattr(echo, "prepare", fail)
    lab.serve({1: echo})
    lab.transport.announce({1: AHEAD})
    for _ in range(2):
        assert lab.exchange(1) == {1: 1.0}


def test_each_reply_says_how_long_it_took(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1)
    lab.serve({1: make_echo(1)})
    started = time.monotonic()
    (reply,) = lab.transport.exchange(lab.requests(1), timeout_s=20).all().values()
    assert reply.exchange_s is not None
    assert 0 < reply.elapsed_s <= time.monotonic() - started
