import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire.tensors import (
    dtype_name,
    dtype_of,
    from_bytes,
    is_finite,
    payload_bytes,
    to_bytes,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def bits(tensor: Tensor) -> list[int]:
    """Return a tensor's memory, so that NaN equals NaN and 0.0 differs from -0.0."""
    values: list[int] = tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    return values


@pytest.mark.parametrize(
    ("tensor", "golden"),
    [
        (torch.tensor([1.0, -2.5]), struct.pack("<2f", 1.0, -2.5)),
        (torch.tensor([[1.0], [3.0]], dtype=torch.float64), struct.pack("<2d", 1.0, 3.0)),
        (torch.tensor([-1, 2**40]), struct.pack("<2q", -1, 2**40)),
        (torch.tensor([1.5], dtype=torch.float16), struct.pack("<e", 1.5)),
        (torch.tensor([1.0], dtype=torch.bfloat16), struct.pack("<f", 1.0)[2:]),
        (torch.tensor([True, False]), b"\x01\x00"),
        (torch.tensor(7, dtype=torch.int16), struct.pack("<h", 7)),
        (torch.empty(3, 0), b""),
    ],
)
def test_bytes_are_row_major_and_little_endian(tensor: Tensor, golden: bytes) -> None:
    assert to_bytes(tensor) == golden
    back = from_bytes(golden, dtype_name(tensor.dtype), tensor.shape)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


@settings(deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=4),
    data=st.data(),
)
def test_any_tensor_comes_back_bit_for_bit(
    dtype: torch.dtype, shape: list[int], data: st.DataObject
) -> None:
    numel = int(torch.empty(shape).numel())
    length = numel * dtype.itemsize
    raw = data.draw(st.binary(min_size=length, max_size=length))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    tensor = from_bytes(raw, dtype_name(dtype), shape)
    assert tensor.shape == tuple(shape)
    assert tensor.dtype == dtype
    assert to_bytes(tensor) == raw
    assert bits(from_bytes(to_bytes(tensor), dtype_name(dtype), shape)) == bits(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.tensor(2.0).expand(3, 2),
        torch.rand(3, requires_grad=True),
        torch.rand(3, 4, dtype=torch.bfloat16, requires_grad=True).T,
    ],
)
def test_strided_tensors_travel_by_value(tensor: Tensor) -> None:
    back = from_bytes(to_bytes(tensor), dtype_name(tensor.dtype), tensor.shape)
    assert torch.equal(back, tensor.detach())


def test_the_decoded_tensor_owns_its_memory() -> None:
    data = to_bytes(torch.zeros(3))
    tensor = from_bytes(data, "float32", (3,))
    tensor += 1
    assert data == bytes(12)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "complex64", "object", "Float32", ""])
def test_an_unknown_dtype_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match=rf"'{name}' is not .*carries .*float32.*Convert"):
        dtype_of(name)
    with pytest.raises(ProtocolError, match="is not one that travels"):
        from_bytes(b"", name, (0,))


def test_a_dtype_that_does_not_travel_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="'complex64' is not one that travels"):
        to_bytes(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize("length", [0, 7, 9, 16])
def test_a_length_that_does_not_fit_the_header_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match=rf"{length} bytes .*\(2, 1\), which has 8;.*again"):
        from_bytes(bytes(length), "float32", (2, 1))


def test_a_negative_size_is_refused() -> None:
    # Two negative sizes have a positive product, which no length check would find.
    with pytest.raises(ProtocolError, match=r"shape \(-1, -2\); a shape has at most 16 sizes"):
        from_bytes(bytes(8), "float32", (-1, -2))


def test_payload_counts_elements_not_headers() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(5, dtype=torch.int64), torch.tensor(True)]
    assert payload_bytes(tensors) == sum(len(to_bytes(tensor)) for tensor in tensors) == 65
    assert payload_bytes([]) == 0


@pytest.mark.parametrize(
    ("tensor", "finite"),
    [
        (torch.tensor([1.0, -3.0]), True),
        (torch.tensor([1.0, torch.nan]), False),
        (torch.tensor([torch.inf], dtype=torch.bfloat16), False),
        (torch.tensor(-torch.inf), False),
        (torch.tensor([2**62]), True),
        (torch.tensor([True]), True),
        (torch.empty(0), True),
        (torch.tensor([3e38, 3e38]), True),
        (torch.tensor([3e38, 3e38, torch.nan]), False),
        (torch.tensor([torch.inf, -torch.inf]), False),
    ],
)
def test_finiteness(tensor: Tensor, finite: bool) -> None:
    assert is_finite(tensor) is finite
