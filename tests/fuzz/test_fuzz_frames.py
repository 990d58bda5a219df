"""Frames whose header, values, table of tensors or bytes lie, as either end reads them."""

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flower_psl import ProtocolError
from flower_psl.transport.stream_ticket import Ticket
from flower_psl.wire import (
    PROTOCOL_VERSION,
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    differences,
    frames,
    parts,
    segment_spec,
)
from flower_psl.wire.frames import Kind
from flower_psl.wire.json_text import LONGEST_TEXT_BYTES
from flower_psl.wire.tensor_table import pack_tensors, unpack_tensors

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

ID = StepId(seed=3, server_round=2, plan=0, step=40, client_key=9, start=6, batch_size=4)
WEIGHTS = {"conv.weight": torch.rand(2, 1, 3, 3), "bn.num_batches_tracked": torch.tensor(4)}
REPLY = StepReply(
    phase=Phase.FORWARD,
    id=ID,
    activations=torch.rand(4, 2, 3),
    activation_dtype=torch.float32,
    labels=torch.arange(4),
    moments={"bn.mean": torch.rand(1, 2).double(), "bn.count": torch.tensor([36])},
    unused=("bn.bias",),
)
REQUEST = StepRequest(
    phase=Phase.TRAIN,
    id=ID,
    weights=WEIGHTS,
    gradient=torch.rand(3, 2),
    previous=ID._replace(step=39, batch_size=3),
)
SEGMENT = segment_spec(WEIGHTS.items())
DESCRIPTION = DescribeReply(
    client_key=9, num_examples=60, num_test_examples=6, segment=SEGMENT, has_optimizer=True
)
TICKET = Ticket(
    address="127.0.0.1:9200",
    session="a1b2",
    certificate="-----BEGIN CERTIFICATE-----",
    server_name="flower-psl",
    token="5ec7e7",
    reconnect_timeout_s=30.0,
    max_frame_bytes=1000,
)
VALUES: dict[Kind, dict[str, Any]] = {
    Kind.REPLY: {**parts.reply_config(REPLY)},
    Kind.REQUEST: {**parts.request_config(REQUEST), frames.AHEAD: list(ID)},
    Kind.DESCRIPTION: {**parts.description_config(DESCRIPTION)},
    Kind.ERROR: {"reason": "MemoryError: no more"},
}
TENSORS = {
    Kind.REPLY: parts.reply_tensors(REPLY),
    Kind.REQUEST: parts.request_tensors(REQUEST),
    Kind.WEIGHTS: WEIGHTS,
}
# What an error about bytes that no longer say what they were about may speak of.
ANY_PART = (
    *("frame", "tensor", "phase", "id ", "seconds", "unused", "description", "dtype"),
    *("encoding", "examples", "client key", "version", "protocol", "previous", "gradient"),
    *("request", "saved", "ahead"),
)


def framed(kind: Kind, values: dict[str, Any], table: bytes = b"") -> bytes:
    """Return a frame of any values and tensors, with the lengths that they have."""
    text = json.dumps(values).encode()
    header = struct.pack(
        "<4sBBHQQIQ", b"PSLF", PROTOCOL_VERSION, kind, 0, 9, 2, len(text), len(table)
    )
    return header + text + table


def read(message: bytes) -> None:
    """Read a message, of whatever it says it is."""
    for data in frames.split(message):
        frame = frames.unpack(data)
        tensors = unpack_tensors(frame.tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= len(frame.tensors)
        match frame.kind:
            case Kind.REPLY:
                parts.reply_of(frame.values, tensors)
            case Kind.REQUEST:
                request = parts.request_of(frame.values, WEIGHTS, tensors)
                assert min(request.id) >= 0
                assert min(parts.step_id_of(frame.values, frames.AHEAD)) >= 0
            case Kind.DESCRIPTION:
                description = parts.description_of(frame.values)
                assert 0 <= description.num_examples <= 10**8
                assert all(
                    isinstance(line, str) for line in differences(SEGMENT, description.segment)
                )


def originals() -> list[bytes]:
    tables = {kind: b"".join(pack_tensors(tensors)) for kind, tensors in TENSORS.items()}
    kinds = [*VALUES, Kind.WEIGHTS]
    return [framed(kind, VALUES.get(kind, {}), tables.get(kind, b"")) for kind in kinds]


def test_the_truth_is_read() -> None:
    read(b"".join(originals()))


def test_frames_whose_bytes_lie(fuzzing: "type[Fuzz]") -> None:
    whole = originals()

    def make(draws: "Draws") -> "Mutant":
        data = fuzzing.scratched(draws, whole[int(draws.integers(len(whole)))])
        return fuzzing.mutant(lambda: read(data), ANY_PART)

    with fuzzing.within(64_000_000):
        assert 7_000 < fuzzing.run(8_000, make) < 8_000


def test_frames_whose_header_lies(fuzzing: "type[Fuzz]") -> None:
    whole = originals()
    numbers = [0, 1, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]

    def make(draws: "Draws") -> "Mutant":
        data = whole[int(draws.integers(len(whole)))]
        fields = list(struct.unpack_from("<4sBBHQQIQ", data))
        at = 1 + int(draws.integers(len(fields) - 1))
        bits = (0, 8, 8, 16, 64, 64, 32, 64)[at]
        near = fields[at] + int(draws.integers(-3, 4))
        fields[at] = (near if draws.integers(2) else numbers[int(draws.integers(7))]) % 2**bits
        lying = struct.pack("<4sBBHQQIQ", *fields) + data[36:]
        return fuzzing.mutant(lambda: read(lying), ANY_PART)

    with fuzzing.within(64_000_000):
        assert 2_000 < fuzzing.run(4_000, make) < 4_000


def test_frames_whose_values_lie(fuzzing: "type[Fuzz]") -> None:
    kinds = list(VALUES)

    def make(draws: "Draws") -> "Mutant":
        kind = kinds[int(draws.integers(len(kinds)))]
        values, field = fuzzing.mutated(draws, VALUES[kind])
        table = b"".join(pack_tensors(TENSORS.get(kind, {})))
        data = framed(kind, values, table)
        # A step's number may be found wrong where it meets another one.
        names = fuzzing.spellings(field.removesuffix("-encoding")) | {
            field.replace("-", "_"),
            field.replace("-", " "),
            *(("protocol",) if field == "version" else ()),
        }
        if field in ("id", "previous", "phase", "run"):
            names |= {"number may be negative", "cut gradient", "gradient belongs", "to save"}
        return fuzzing.mutant(lambda: read(data), names)

    with fuzzing.within(64_000_000):
        assert 4_000 < fuzzing.run(8_000, make) < 8_000


def test_tables_of_tensors_that_lie(fuzzing: "type[Fuzz]") -> None:
    def make(draws: "Draws") -> "Mutant":
        kind = list(TENSORS)[int(draws.integers(len(TENSORS)))]
        _, text, *payload = pack_tensors(TENSORS[kind])
        table = json.loads(bytes(text))
        name = list(table)[int(draws.integers(len(table)))]
        names = fuzzing.spellings(name)
        if draws.integers(2):
            table[name], field = fuzzing.mutated(draws, table[name])
            names |= {field}
        else:
            table, name = fuzzing.mutated(draws, table)
            # What is missing leaves a gap before the one behind it, or at the end.
            names = fuzzing.spellings(name) | {"the one before it ends", "in a payload of"}
        lying = json.dumps(table).encode()
        data = b"".join([len(lying).to_bytes(8, "little"), lying, *payload])
        values = VALUES.get(kind, {})
        return fuzzing.mutant(lambda: read(framed(kind, values, data)), names)

    with fuzzing.within(64_000_000):
        assert 6_000 < fuzzing.run(8_000, make) < 8_000


def test_segments_that_lie(fuzzing: "type[Fuzz]") -> None:
    segment = json.loads(str(VALUES[Kind.DESCRIPTION]["segment"]))

    def make(draws: "Draws") -> "Mutant":
        table = fuzzing.lie(draws, segment)
        values = {**VALUES[Kind.DESCRIPTION], "segment": json.dumps(table)}
        return fuzzing.mutant(lambda: read(framed(Kind.DESCRIPTION, values)), ["segment"])

    with fuzzing.within(64_000_000):
        assert 2_000 < fuzzing.run(4_000, make) < 4_000


def test_tickets_that_lie(fuzzing: "type[Fuzz]") -> None:
    def read_ticket(values: dict[str, Any]) -> None:
        ticket = Ticket.from_values(values)
        assert 0 < ticket.max_frame_bytes < 2**31
        assert 0 < ticket.reconnect_timeout_s < float("inf")

    def make(draws: "Draws") -> "Mutant":
        values, field = fuzzing.mutated(draws, TICKET.to_values())
        names = fuzzing.spellings(field) | {ALSO_CALLED.get(field, field)}
        return fuzzing.mutant(lambda: read_ticket(values), names)

    with fuzzing.within(64_000_000):
        assert 1_500 < fuzzing.run(4_000, make) < 4_000


ALSO_CALLED = {"certificate": "plain text", "address": "plain text", "version": "protocol"}

BOMBS = {
    "lists": '{"a":[' + "[]," * 330_000 + "[]]}",
    "objects": '{"a":[' + '{"":0},' * 140_000 + "{}]}",
    "names": "{" + ",".join(f'"{i:x}":0' for i in range(100_000)) + "}",
    "digits": '{"a":[' + ("9" * 4300 + ",") * 230 + "0]}",
    "escapes": '{"a":"' + "\\ud83d" * 160_000 + '"}',
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_the_longest_text_that_is_read_takes_little_memory(
    fuzzing: "type[Fuzz]", name: str
) -> None:
    text = BOMBS[name].encode()
    assert len(text) < LONGEST_TEXT_BYTES
    header = struct.pack("<4sBBHQQIQ", b"PSLF", PROTOCOL_VERSION, 3, 0, 9, 2, len(text), 0)
    with fuzzing.within(64_000_000):
        frame = frames.unpack(header + text)
        with pytest.raises(ProtocolError):
            parts.reply_of(frame.values, {})
        with pytest.raises(ProtocolError):
            parts.description_of({**VALUES[Kind.DESCRIPTION], "segment": BOMBS[name]})


def test_longer_text_is_refused_before_it_is_read(fuzzing: "type[Fuzz]") -> None:
    data = memoryview(framed(Kind.REPLY, {"a": "x" * 50_000_000}))
    with fuzzing.within(16_000_000):
        with pytest.raises(
            ProtocolError, match=r"a frame's values are 500000.. bytes of JSON; at"
        ):
            frames.unpack(data)


def test_a_segment_of_too_many_tensors_is_not_sent() -> None:
    segment = {f"layers.{i}.weight": SEGMENT["conv.weight"] for i in range(20_000)}
    description = DescribeReply(client_key=1, num_examples=1, num_test_examples=0, segment=segment)
    with pytest.raises(
        ProtocolError, match=r"bytes of JSON; at most 1000000 .* Put fewer of them"
    ):
        frames.pack(Kind.DESCRIPTION, 1, 2, parts.description_config(description))
    weights = {f"layers.{i}.weight": torch.tensor(0.0) for i in range(20_000)}
    with pytest.raises(
        ProtocolError, match=r"of its tensors are .* bytes of JSON; at most 1000000"
    ):
        pack_tensors(weights)
