"""What is refused without an effect on the nodes that are served."""

import secrets
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from flower_psl import WaitError
from flower_psl.transport import stream_server
from flower_psl.transport.stream_tls import make_certificate
from flower_psl.wire import StepRequest, frames, parts
from flower_psl.wire.frames import Kind

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, Lab, MakeLab, Serving

# What opens an HTTP/2 connection, and its empty settings.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "")


@pytest.fixture
def lab(make_lab: "MakeLab") -> "Lab":
    """Nodes 1 and 2 are served or attacked, node 3 is not connected."""
    return make_lab(1, 2, 3)


@contextmanager
def during_a_step(lab: "Lab", make_echo: "type[Echo]") -> Iterator[None]:
    """Run the block while node 1 computes; then its answer must come as if nothing was."""
    computing, attacked = threading.Event(), threading.Event()

    def wait(_: StepRequest) -> None:
        computing.set()
        assert attacked.wait(20)

    lab.serve({1: make_echo(1, during=wait)})
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.exchange, 1)
        try:
            assert computing.wait(20)
            yield
        finally:
            attacked.set()
        assert exchange.result(20) == {1: 1.0}
    assert lab.exchange(1) == {1: 1.0}


FIRST_FRAMES: dict[str, tuple[Callable[["Lab"], bytes | None], str]] = {
    "a wrong token": (lambda lab: lab.hello(3, secrets.token_hex(32)), "wrong token"),
    "another node's token": (lambda lab: lab.hello(3, lab.tokens[1]), "wrong token"),
    "an empty token": (lambda lab: lab.hello(3, ""), "wrong token"),
    "no token": (lambda lab: frames.pack(Kind.HELLO, 3, 0, {}), "wrong token"),
    "no text": (lambda lab: frames.pack(Kind.HELLO, 3, 0, {"token": [1]}), "wrong token"),
    "half a surrogate pair": (lambda lab: lab.hello(3, "\ud800"), "wrong token"),
    "an unknown node": (lambda lab: lab.hello(9, lab.tokens[3]), "wrong token"),
    "a connected node": (lambda lab: lab.hello(1), "second connection of a node"),
    "a long token": (lambda lab: lab.hello(3, "a" * 1024), "long first frame"),
    "a reply": (lambda lab: frames.pack(Kind.REPLY, 1, 1, {}), "frame of another node"),
    "random bytes": (lambda lab: np.random.default_rng(0).bytes(99), "malformed frame"),
    "no bytes": (lambda lab: b"", "malformed frame"),
    "nothing": (lambda lab: None, "malformed frame"),
    "another version": (lambda lab: b"PSLF\x00" + lab.hello(3)[5:], "malformed frame"),
    "an unknown kind": (
        lambda lab: lab.hello(3)[:5] + b"\x63" + lab.hello(3)[6:],
        "malformed frame",
    ),
    "a frame cut off": (lambda lab: lab.hello(3)[:-1], "malformed frame"),
    "a frame grown": (lambda lab: lab.hello(3) + b"}", "malformed frame"),
}


@pytest.mark.parametrize("name", list(FIRST_FRAMES))
def test_a_stream_that_is_not_let_in_ends_alike_for_every_reason(
    lab: "Lab", make_echo: "type[Echo]", name: str
) -> None:
    make_frame, reason = FIRST_FRAMES[name]
    with during_a_step(lab, make_echo):
        stream = lab.raw(make_frame(lab))
        # Its real token comes too late, after what was refused.
        stream.send(lab.hello(3))
        assert stream.end() == REFUSED
    assert lab.server.refused == Counter({reason: 1})
    assert lab.transport.nodes() == [1]


def test_nothing_is_read_of_a_stream_that_is_not_let_in(make_lab: "MakeLab") -> None:
    """Else it would end because of its long frame, and be a way to fill the memory."""
    lab = make_lab(1, max_frame_bytes=10_000)
    for first in (None, lab.hello(1, "guess")):
        stream = lab.raw(first)
        stream.send(bytes(1_000_000))
        assert stream.end() == REFUSED
    assert lab.server.refused == Counter({"malformed frame": 1, "wrong token": 1})


@pytest.mark.parametrize("idle", ["during the handshake", "after it"])
def test_whoever_opens_no_stream_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, make_lab: "MakeLab", idle: str
) -> None:
    monkeypatch.setattr(stream_server, "_STRANGERS_PATIENCE_MS", 200)
    address = ("127.0.0.1", make_lab(1).port)
    with socket.create_connection(address, timeout=20) as connection:
        if idle == "after it":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(connection) as encrypted:
                encrypted.sendall(HTTP2_PREFACE)
                while encrypted.recv(4096):
                    pass
        else:
            assert connection.recv(4096) == b""


def test_connections_are_as_many_as_the_nodes_may_need(
    monkeypatch: pytest.MonkeyPatch, make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    monkeypatch.setattr(stream_server, "_SPARE_CONNECTIONS", 1)
    lab = make_lab(1)
    lab.serve({1: make_echo(1)})
    with ExitStack() as connections:
        for _ in range(20):
            each = socket.create_connection(("127.0.0.1", lab.port), timeout=20)
            connections.enter_context(each)
        assert each.recv(1) == b""
        assert lab.exchange(1) == {1: 1.0}


def test_a_second_session_of_a_node_that_is_served_ends_by_itself(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    """Of a node that is asked again, and then comes back by its first session all the same."""
    lab = make_lab(1, reconnect_timeout_s=0.3)
    with during_a_step(lab, make_echo):
        second = make_echo(1)
        assert isinstance(lab.start({1: second}).error(), ConnectionError)
    assert set(lab.server.refused) == {"second connection of a node"}
    assert lab.transport.nodes() == [1]


def test_a_bad_hello_does_not_end_a_connection_that_serves_others(lab: "Lab") -> None:
    stream = lab.raw_node(1)
    stream.send(lab.hello(2, "guess"), lab.hello(9, "guess"), lab.hello(1), lab.hello(3))
    assert stream.read()[:2] == (Kind.WELCOME, 3)
    lab.await_nodes([3])
    assert lab.transport.nodes() == [1, 3]
    assert lab.transport.refused == {"wrong token": 2, "second connection of a node": 1}


def test_a_late_answer_is_no_refusal_but_its_repetition_is(
    lab: "Lab", make_echo: "type[Echo]"
) -> None:
    stream = lab.raw_node(2)
    with pytest.raises(WaitError, match="no reply within 0 s"):
        lab.transport.describe([2], timeout_s=0).all()
    late = frames.pack(Kind.ERROR, 2, stream.read().sequence, {"reason": "slow"})
    with ThreadPoolExecutor(1) as pool:
        describing = pool.submit(lab.transport.describe, [2], 20)
        values = parts.description_config(make_echo(2).describe())
        sequence = stream.read().sequence
        stream.send(late, late, frames.pack(Kind.DESCRIPTION, 2, sequence, values))
        assert describing.result(20).all()[2].client_key == 2
    assert lab.transport.refused == {"frame for another request": 1}


def test_a_token_of_an_earlier_server_is_refused(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    earlier, lab = make_lab(1, 3), make_lab(1, 3)
    with during_a_step(lab, make_echo):
        stream = lab.raw(lab.hello(3, earlier.tokens[3]))
        assert stream.end() == REFUSED
    assert lab.server.refused == Counter({"wrong token": 1})


def test_a_token_is_good_for_a_goodbye_when_the_run_has_ended(lab: "Lab") -> None:
    lab.server.goodbye()
    stream = lab.raw(lab.hello(1))
    assert stream.read()[:2] == (Kind.GOODBYE, 1)
    stream = lab.raw(lab.hello(3, lab.tokens[1]))
    assert stream.end() == REFUSED
    assert lab.transport.nodes() == []


FRAMES: dict[str, tuple[Callable[[int], bytes], str]] = {
    "of another node": (lambda _: frames.pack(Kind.REPLY, 1, 1, {}), "frame of another node"),
    "of no node": (lambda _: frames.pack(Kind.REPLY, 9, 1, {}), "frame of another node"),
    "for the request before": (
        lambda sequence: frames.pack(Kind.REPLY, 2, sequence - 1, {}),
        "frame for another request",
    ),
    "for the request after": (
        lambda sequence: frames.pack(Kind.ERROR, 2, sequence + 1, {}),
        "frame for another request",
    ),
    "of the server's kind": (
        lambda sequence: frames.pack(Kind.REQUEST, 2, sequence, {}),
        "frame of a kind that nodes do not send",
    ),
    "that says goodbye": (
        lambda sequence: frames.pack(Kind.GOODBYE, 2, sequence, {}),
        "frame of a kind that nodes do not send",
    ),
    "of random bytes": (lambda _: np.random.default_rng(1).bytes(500), "malformed frame"),
    "of no bytes": (lambda _: b"", "malformed frame"),
    "without its last byte": (
        lambda sequence: frames.pack(Kind.REPLY, 2, sequence, {})[:-1],
        "malformed frame",
    ),
}


@pytest.mark.parametrize("name", list(FRAMES))
def test_a_frame_of_a_node_that_was_let_in_is_left_out(
    lab: "Lab", make_echo: "type[Echo]", name: str
) -> None:
    """Even while an answer of this node is waited for."""
    make_frame, reason = FRAMES[name]
    stream = lab.raw_node(2)
    with ThreadPoolExecutor(1) as pool:
        describing = pool.submit(lab.transport.describe, [2], 20)
        sequence = stream.read().sequence
        values = parts.description_config(make_echo(2).describe())
        stream.send(make_frame(sequence), frames.pack(Kind.DESCRIPTION, 2, sequence, values))
        assert describing.result(20).all()[2].client_key == 2
    assert lab.server.refused == Counter({reason: 1})


def test_plain_text_is_refused(lab: "Lab", make_echo: "type[Echo]") -> None:
    with during_a_step(lab, make_echo):
        stream = lab.raw(lab.hello(3), tls=False)
        assert stream.end()[0] is grpc.StatusCode.UNAVAILABLE
    assert lab.transport.nodes() == [1]


def test_a_client_with_another_root_does_not_talk_to_the_server(
    make_lab: "MakeLab", make_echo: "type[Echo]", make_serving: "type[Serving]"
) -> None:
    lab = make_lab(1, 3, reconnect_timeout_s=0.3)
    with during_a_step(lab, make_echo):
        serving = lab.start({3: make_echo(3)}, roots=make_certificate().roots)
        error = serving.error()
        assert isinstance(error, ConnectionError)
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert not lab.server.refused
    assert lab.transport.nodes() == [1]


def test_a_frame_that_is_too_long_ends_its_stream_only(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, max_frame_bytes=10_000)
    stream = lab.raw_node(2)
    with during_a_step(lab, make_echo):
        stream.send(frames.pack(Kind.REPLY, 2, 1, {}, [bytes(10_000)]))
        assert stream.end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    stream = lab.raw_node(2)  # it may come back
    stream.close()


def test_mutated_first_frames_all_end_alike(lab: "Lab", make_echo: "type[Echo]") -> None:
    draws = np.random.default_rng(0)
    hello = bytearray(lab.hello(3, secrets.token_hex(32)))
    with during_a_step(lab, make_echo):
        for _ in range(300):
            data = hello.copy()
            data[draws.integers(len(data))] ^= 1 << int(draws.integers(8))
            stream = lab.raw(bytes(data))
            assert stream.end() == REFUSED
            stream.close()
    assert lab.server.refused.total() == 300
