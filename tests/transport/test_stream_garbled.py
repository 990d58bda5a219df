"""Bytes that are no frame, from nodes that were let in."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flower_psl import ProtocolError
from flower_psl.transport.stream_connection import Arrival, Garbled
from flower_psl.wire import frames, parts
from flower_psl.wire.frames import Kind
from flower_psl.wire.tensor_table import pack_tensors
from tests.transport.test_stream_refusals import FRAMES

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, Lab, MakeLab


@pytest.fixture
def lab(make_lab: "MakeLab") -> "Lab":
    return make_lab(1, 2, 3, 4)


def description(echo: "Echo", sequence: int) -> bytes:
    """Return a device's answer to a request to describe itself."""
    values = parts.description_config(echo.describe())
    return frames.pack(Kind.DESCRIPTION, echo.node, sequence, values)


# Which of them are no frame, and why.
GARBLED = {
    "of random bytes": "are no frame of flower-psl",
    "of no bytes": "a frame of 0 bytes; its header alone has 36. Send it whole.",
    "without its last byte": (
        "a frame of 37 bytes whose header promises 38; it was cut off or changed."
    ),
}


@pytest.mark.parametrize("name", list(GARBLED))
def test_bytes_that_are_no_frame_are_an_unusable_answer_of_whoever_owes_one(
    lab: "Lab", make_echo: "type[Echo]", name: str
) -> None:
    """Soon, and not when the step's time is over; others' answers are awaited as ever."""
    make_bytes, _ = FRAMES[name]
    lab.serve({1: make_echo(1)})
    stream = lab.raw_node(2)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, lab.requests(1, 2), 3600)
        assert stream.read().kind is Kind.WEIGHTS
        sequence = stream.read().sequence
        stream.send(make_bytes(sequence))
        answers = exchange.result(20)
        assert list(answers.replies) == [1]
        failure = answers.failures[2]
        assert isinstance(failure, ProtocolError)
        assert str(failure).startswith("node 2, client 2, round 2, step 40")
        assert GARBLED[name] in str(failure)
        assert lab.server.refused == Counter({"malformed frame": 1})
        # The answer itself is too late then, and the next one is taken.
        stream.send(frames.pack(Kind.REPLY, 2, sequence, {}))
        describing = pool.submit(lab.transport.describe, [2], 20)
        sequence = stream.read().sequence
        stream.send(description(make_echo(2), sequence))
        assert describing.result(20).all()[2].client_key == 2
    assert lab.server.refused == Counter({"malformed frame": 1, "frame for another request": 1})


def test_bytes_that_are_no_frame_are_nothing_to_nodes_that_have_answered(
    lab: "Lab", make_echo: "type[Echo]"
) -> None:
    """Nor to those who came over another connection, or tried to come over this one."""
    stream, other = lab.raw_node(1), lab.raw_node(3)
    stream.send(lab.hello(2), lab.hello(3), lab.hello(3, "guess"))
    lab.await_nodes([2])
    with ThreadPoolExecutor(1) as pool:
        describing = pool.submit(lab.transport.describe, [1, 2, 3], 20)
        sequence = other.read().sequence
        stream.send(description(make_echo(1), sequence), b"garbled", b"garbled", lab.hello(4))
        while stream.read()[:2] != (Kind.WELCOME, 4):  # all before it has been read then
            pass
        other.send(description(make_echo(3), sequence))
        answers = describing.result(20)
    assert sorted(answers.replies) == [1, 3]
    assert list(answers.failures) == [2]


def test_what_was_garbled_in_an_exchange_before_is_no_answer(
    lab: "Lab", make_echo: "type[Echo]"
) -> None:
    """It can arrive at the very moment at which nobody waits for it any more."""
    lab.serve({1: make_echo(1)})
    lab.server.arrivals.put(Arrival(1, Garbled(0, ProtocolError("changed"))))
    assert lab.exchange(1) == {1: 1.0}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def mutant(draws: np.random.Generator, original: bytes) -> bytes:
    """Return changed bytes that are no HELLO."""
    while True:
        data = bytearray(original)
        for _ in range(int(draws.integers(1, 4))):
            at = int(draws.integers(len(data)))
            match draws.integers(3):
                case 0:
                    data[at] ^= 1 << int(draws.integers(8))
                case 1:
                    del data[at + 1 :]
                case _:
                    data[at:at] = draws.bytes(4)
        if bytes(data) != original and bytes(data[5:6]) != bytes([Kind.HELLO]):
            return bytes(data)


def test_ten_thousand_mutated_frames_change_nothing(lab: "Lab", make_echo: "type[Echo]") -> None:
    draws = np.random.default_rng(0)
    original = frames.pack(Kind.REPLY, 2, 2**40, {"phase": "forward", "unused": []}, [bytes(64)])
    stream = lab.raw_node(2)
    lab.serve({1: make_echo(1)})
    sizes = []
    for _ in range(11):
        stream.send(*(mutant(draws, original) for _ in range(1000)))
        assert lab.exchange(1) == {1: 1.0}
        sizes.append(resident_bytes())
    stream.send(lab.hello(3))
    assert stream.read()[:2] == (Kind.WELCOME, 3)  # so that all before it were read
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.exchange, 2)
        reply = make_echo(2).handle(lab.requests(2)[2])
        tensors = pack_tensors(parts.reply_tensors(reply))
        sequence = stream.read().sequence
        stream.send(frames.pack(Kind.REPLY, 2, sequence, parts.reply_config(reply), tensors))
        assert exchange.result(20) == {2: 2.0}
    assert lab.server.refused.total() == 11_000
    assert len(lab.server.refused) == 4  # frames of every bad sort
    assert sizes[-1] - sizes[0] < 20_000_000
