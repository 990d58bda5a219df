"""Encodings through what every transport is made of: parts, records and frames."""

from collections.abc import Callable, Mapping

import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor

from flower_psl import Encodings, ProtocolError
from flower_psl.wire import (
    ENCODINGS,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    encode_batch,
    encode_parameters,
    parts,
    records,
)
from flower_psl.wire.tensor_table import pack_tensors, unpack_tensors

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=3, start=16, batch_size=4)
GRADIENT = torch.rand(4, 3, 8, 8)


def request(encoding: str) -> StepRequest:
    encoded = encode_batch("gradient", GRADIENT, encoding, lambda: 1)
    return StepRequest(
        phase=Phase.BACKWARD,
        id=ID,
        weights=encode_parameters({"w": torch.rand(8, 3)}, encoding, ["w"]),
        gradient=encoded.values,
        extras=encoded.extras,
        encodings=Encodings(activations="bf16", gradients=encoding, weights=encoding),
    )


def reply(encoding: str, phase: Phase = Phase.FORWARD) -> StepReply:
    if phase is Phase.BACKWARD:
        travelling = encode_parameters({"w": torch.rand(8, 3)}, encoding, ["w"], lambda: 1)
        return StepReply(phase=phase, id=ID, gradients=travelling)
    encoded = encode_batch("activations", GRADIENT, encoding, None)
    return StepReply(
        phase=phase,
        id=ID,
        activations=encoded.values,
        activation_dtype=GRADIENT.dtype,
        extras=encoded.extras,
        labels=torch.arange(4),
    )


def over_records(sent: StepRequest) -> StepRequest:
    return records.decode_request(
        records.encode_request(sent, records.encode_tensors(sent.weights))
    )


def over_frames(sent: StepRequest) -> StepRequest:
    return parts.request_of(
        parts.request_config(sent),
        framed(sent.weights),
        framed(parts.request_tensors(sent)),
    )


def framed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return unpack_tensors(memoryview(b"".join(pack_tensors(tensors))))


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("carry", [over_records, over_frames])
def test_a_request_arrives_as_it_was_sent(
    encoding: str, carry: Callable[[StepRequest], StepRequest]
) -> None:
    sent = request(encoding)
    got = carry(sent)
    assert (got.phase, got.id, got.encodings) == (sent.phase, sent.id, sent.encodings)
    assert_same(got.weights, sent.weights)
    assert_same(parts.request_tensors(got), parts.request_tensors(sent))
    assert got.payload_bytes == sent.payload_bytes


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("phase", Phase)
def test_a_reply_arrives_as_it_was_sent(encoding: str, phase: Phase) -> None:
    sent = reply(encoding, phase)
    got = records.decode_reply(records.encode_reply(sent))
    assert got.activation_dtype == sent.activation_dtype
    assert_same(parts.reply_tensors(got), parts.reply_tensors(sent))
    assert_same(got.extras, sent.extras)
    assert got.payload_bytes == sent.payload_bytes
    again = parts.reply_of(parts.reply_config(sent), framed(parts.reply_tensors(sent)))
    assert_same(parts.reply_tensors(again), parts.reply_tensors(sent))


@pytest.mark.parametrize(("encoding", "share"), [("bf16", 0.5), ("fp16", 0.5), ("int8", 0.25)])
def test_what_travels_is_what_is_counted(encoding: str, share: float) -> None:
    labels, raw = 4 * 8, 4 * GRADIENT.numel()
    assert reply("raw").payload_bytes == raw + labels
    # Scale and zero of three channels.
    extra = 24 if encoding == "int8" else 0
    assert reply(encoding).payload_bytes == share * raw + extra + labels
    weights = sum(
        tensor.numel() * tensor.element_size() for tensor in request(encoding).weights.values()
    )
    assert request(encoding).payload_bytes == share * raw + extra + weights


@pytest.mark.parametrize("field", ["activations", "gradients", "weights"])
@pytest.mark.parametrize("name", ["int4", ""])
def test_an_encoding_that_a_reader_does_not_know_is_refused(field: str, name: str) -> None:
    content = records.encode_request(request("raw"), records.encode_tensors({}))
    config = content["psl"]
    assert isinstance(config, ConfigRecord)
    config[f"{field}-encoding"] = name
    with pytest.raises(
        ProtocolError,
        match=rf"encoding of {field} is '{name}'; .*\['raw', 'bf16', .*Install the same",
    ):
        records.decode_request(content)


def test_a_request_that_names_no_encoding_is_refused() -> None:
    content = records.encode_request(request("raw"), records.encode_tensors({}))
    config = content["psl"]
    assert isinstance(config, ConfigRecord)
    del config["weights-encoding"]
    with pytest.raises(ProtocolError, match="encoding of weights is 'None'"):
        records.decode_request(content)


@pytest.mark.parametrize("name", ["scale", "activations|scale", "gradient-scale"])
def test_a_part_of_nothing_is_refused(name: str) -> None:
    sent = request("int8")
    tensors = {**parts.request_tensors(sent), name: torch.ones(3)}
    with pytest.raises(ProtocolError, match=r"a request holds the tensors .*Install the same"):
        parts.request_of(parts.request_config(sent), {}, tensors)


def test_parts_of_activations_that_did_not_come_are_refused() -> None:
    sent = reply("int8")
    tensors = parts.reply_tensors(sent)
    del tensors["activations"]
    with pytest.raises(ProtocolError, match=r"holds the tensor 'activations\|scale'; known are"):
        parts.reply_of(parts.reply_config(sent), tensors)


@pytest.mark.parametrize("dtype", ["float8", "None"])
def test_a_dtype_that_does_not_travel_is_refused(dtype: str) -> None:
    config = {**parts.reply_config(reply("bf16")), "activation-dtype": dtype}
    with pytest.raises(ProtocolError, match=f"dtype '{dtype}' is not one that travels"):
        parts.reply_of(config, {})
