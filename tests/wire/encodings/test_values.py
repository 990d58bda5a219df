import math

import pytest
import torch
from torch import Tensor, nn

from flower_psl import ProtocolError
from flower_psl.wire.encodings import (
    ENCODINGS,
    EncodedBatch,
    decode_batch,
    decode_parameters,
    encode_batch,
    encode_parameters,
)
from flower_psl.wire.encodings.values import Seed
from flower_psl.wire.tensors import payload_bytes

WHERE = "client 3, round 2, step 40"
LOSSY = [name for name in ENCODINGS if name != "raw"]
SHARE = {"raw": 1.0, "bf16": 0.5, "fp16": 0.5, "int8": 0.25}


def segment() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def size(batch: EncodedBatch) -> int:
    return payload_bytes([batch.values, *batch.extras.values()])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [None, lambda: 5])
def test_a_batch_comes_back(encoding: str, dtype: torch.dtype, seed: Seed | None) -> None:
    tensor = torch.rand(4, 3, 16, 16, dtype=dtype)
    batch = encode_batch("gradient", tensor, encoding, seed)
    decoded = decode_batch("gradient", batch, encoding, dtype, WHERE)
    assert decoded.dtype == dtype
    torch.testing.assert_close(decoded, tensor, atol=1 / 255, rtol=0)
    assert size(batch) / (4 * tensor.numel()) == pytest.approx(
        dtype.itemsize / 4 if encoding == "raw" else SHARE[encoding], rel=0.05
    )
    assert encoding != "raw" or decoded is batch.values is tensor


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        torch.empty(2, 0, 4),
        torch.rand(4, 0),
    ],
)
def test_whole_numbers_and_nothing_travel_as_they_are(encoding: str, tensor: Tensor) -> None:
    batch = encode_batch("activations", tensor, encoding, None)
    assert batch.values is tensor
    assert not batch.extras
    assert decode_batch("activations", batch, encoding, tensor.dtype, WHERE) is tensor


@pytest.mark.parametrize("encoding", ["bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_small_already_travels_as_it_is(encoding: str, dtype: torch.dtype) -> None:
    tensor = torch.rand(4, 3).to(dtype)
    batch = encode_batch("activations", tensor, encoding, None)
    assert batch.values is tensor
    assert decode_batch("activations", batch, encoding, dtype, WHERE) is tensor


def test_rounding_at_random_depends_on_seed_and_name_only() -> None:
    tensor = torch.rand(50, 3)

    def numbers(seed: int | None, name: str = "gradient") -> list[int]:
        new_seed = None if seed is None else lambda: seed
        values: list[int] = encode_batch(name, tensor, "int8", new_seed).values.tolist()
        return values

    state = torch.get_rng_state()
    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)
    assert numbers(1) != numbers(1, "other")
    assert numbers(None) == numbers(None) != numbers(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("encoding", LOSSY)
def test_parameters_come_back_and_buffers_are_untouched(encoding: str) -> None:
    module = segment()
    given = {name: tensor.detach() for name, tensor in tensors_of(module).items()}
    travelling = encode_parameters(given, encoding, dict(module.named_parameters()))
    for name, buffer in module.named_buffers():
        assert travelling[name].data_ptr() == buffer.data_ptr()
    with torch.device("meta"):
        like = tensors_of(segment())
    decoded = decode_parameters(travelling, encoding, like, WHERE)
    assert list(decoded) == list(given)
    for name, tensor in given.items():
        torch.testing.assert_close(decoded[name], tensor, atol=2e-3, rtol=2**-8)
        assert decoded[name].dtype == tensor.dtype


def test_raw_parameters_are_the_very_mapping() -> None:
    given = tensors_of(segment())
    assert encode_parameters(given, "raw", given) is given
    assert decode_parameters(given, "raw", {}, WHERE) is given


def test_channels_of_parameters_come_first() -> None:
    weight = torch.rand(8, 3, 3, 3)
    parts = encode_parameters({"w": weight}, "int8", ["w"])
    assert parts["w|scale"].shape == (8,)
    assert encode_batch("activations", weight, "int8", None).extras["activations|zero"].shape == (
        3,
    )


def test_gradients_may_leave_parameters_out() -> None:
    like = {"a": nn.Parameter(torch.rand(3, 4)), "b": nn.Parameter(torch.rand(3))}
    travelling = encode_parameters({"b": torch.ones(3)}, "int8", like, lambda: 3)
    assert list(decode_parameters(travelling, "int8", like, WHERE)) == ["b"]


def without(batch: EncodedBatch, name: str) -> EncodedBatch:
    return batch._replace(extras={key: part for key, part in batch.extras.items() if key != name})


@pytest.mark.parametrize("part", ["scale", "zero"])
def test_a_missing_part_is_refused(part: str) -> None:
    batch = encode_batch("activations", torch.rand(2, 3), "int8", None)
    with pytest.raises(
        ProtocolError,
        match=rf"{WHERE}: 'activations' .* 'int8' without \['activations\|{part}'\]; all of .*Ins",
    ):
        decode_batch(
            "activations", without(batch, f"activations|{part}"), "int8", torch.float32, WHERE
        )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_part_too_many_is_refused(encoding: str) -> None:
    batch = encode_batch("activations", torch.rand(2, 3), encoding, None)
    more = batch._replace(extras={**batch.extras, "activations|bias": torch.zeros(3)})
    with pytest.raises(
        ProtocolError, match=rf"{WHERE}: .*\['activations\|bias'\] are no part .*'{encoding}'. Bu"
    ):
        decode_batch("activations", more, encoding, torch.float32, WHERE)


@pytest.mark.parametrize("encoding", LOSSY)
def test_raw_values_where_others_were_asked_for_are_refused(encoding: str) -> None:
    batch = EncodedBatch(torch.rand(2, 3), {})
    if encoding == "int8":
        batch = EncodedBatch(batch.values, {"a|scale": torch.ones(3), "a|zero": torch.ones(3)})
    with pytest.raises(
        ProtocolError,
        match=f"{WHERE}: 'a' encoded as '{encoding}' has torch.float32 values; they travel as",
    ):
        decode_batch("a", batch, encoding, torch.float32, WHERE)


@pytest.mark.parametrize("encoding", LOSSY)
def test_decoding_needs_the_dtype_of_the_original(encoding: str) -> None:
    batch = encode_batch("activations", torch.rand(2, 3), encoding, None)
    with pytest.raises(
        ProtocolError, match=f"{WHERE}: 'activations' .*'{encoding}' without the dtype .*Install"
    ):
        decode_batch("activations", batch, encoding, None, WHERE)


def test_a_dtype_that_does_not_travel_encoded_is_refused() -> None:
    batch = encode_batch("activations", torch.rand(2, 3), "bf16", None)
    with pytest.raises(ProtocolError, match=r"bfloat16 values; as they are, they are torch.int64"):
        decode_batch("activations", batch, "bf16", torch.int64, WHERE)


def test_values_that_were_not_finite_name_their_sender() -> None:
    batch = encode_batch("gradient", torch.tensor([[math.nan, 1.0]]), "int8", lambda: 1)
    with pytest.raises(ProtocolError, match=rf"{WHERE}: 'gradient' .* a scale that is NaN.*Look"):
        decode_batch("gradient", batch, "int8", torch.float32, WHERE)


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize(
    ("like", "text"),
    [
        ({"v": nn.Parameter(torch.rand(4, 2))}, r"\['w.*\] are no part of"),
        ({"w": nn.Parameter(torch.rand(4, 3))}, r"'w' travelled with shape \(4, 2\); .* \(4, 3\)"),
        ({"w": torch.rand(4, 2)}, "'w' encoded as '.*' has .* values; as they are, they are"),
    ],
)
def test_parameters_of_another_model_are_refused(
    encoding: str, like: dict[str, Tensor], text: str
) -> None:
    travelling = encode_parameters({"w": torch.rand(4, 2)}, encoding, ["w"])
    with pytest.raises(ProtocolError, match=f"{WHERE}: .*{text}"):
        decode_parameters(travelling, encoding, like, WHERE)
