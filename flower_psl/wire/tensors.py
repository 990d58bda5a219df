"""Tensors as bytes, and back, with every promise of their header checked."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flower_psl.errors import ProtocolError

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
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
    )
}
_TRAVEL = frozenset(_DTYPES.values())
# No tensor of a step comes near it.
_MOST_DIMENSIONS = 16


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name on the wire, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name on the wire.

    Raises
    ------
    ProtocolError
        If the wire does not carry this dtype.
    """
    if name not in _DTYPES:
        raise ProtocolError(
            f"dtype {name!r} is not one that travels; the wire carries {sorted(_DTYPES)}. Convert "
            "the tensor on the side that sends it."
        )
    return _DTYPES[name]


def as_bytes_view(tensor: Tensor) -> memoryview:
    """Return a tensor's elements, row-major and little-endian, copied only if they must be.

    Raises
    ------
    ProtocolError
        If its dtype does not travel.
    """
    if tensor.dtype not in _TRAVEL:
        dtype_of(dtype_name(tensor.dtype))  # raises
    if not tensor.numel():
        return memoryview(b"")
    if tensor.dtype is torch.bfloat16:  # NumPy has none
        tensor = tensor.detach().view(torch.int16)
    return np.ascontiguousarray(tensor.numpy(force=True)).data.cast("B")


def to_bytes(tensor: Tensor) -> bytes:
    """Return a copy of `as_bytes_view`."""
    return as_bytes_view(tensor).tobytes()


def from_bytes(data: bytes, dtype: str, shape: Sequence[int]) -> Tensor:
    """Return the tensor that `to_bytes` was given.

    Parameters
    ----------
    data : bytes
        Row-major, little-endian elements.
    dtype : str
        The name of the dtype.
    shape : sequence of int
        The shape.

    Returns
    -------
    Tensor
        A tensor that owns its memory.

    Raises
    ------
    ProtocolError
        If the dtype is unknown, the shape is not one, or the length does not fit.
    """
    torch_dtype = dtype_of(dtype)
    check_shape(shape)
    expected_bytes = math.prod(shape) * torch_dtype.itemsize
    if len(data) != expected_bytes:
        raise ProtocolError(
            f"{len(data)} bytes for a {dtype} tensor of shape {tuple(shape)}, which has "
            f"{expected_bytes}; the payload is cut off or its header is wrong. Send it again."
        )
    return copied(data, torch_dtype, tuple(shape))


def check_shape(shape: Sequence[object]) -> None:
    """Refuse what can be no tensor's shape.

    Raises
    ------
    ProtocolError
        If it has more than 16 sizes, or one that is no whole number of 0 or more, or, as
        far as they are not 0, they multiply to more than 64 bits hold.
    """
    if not _is_shape(shape):
        raise ProtocolError(
            f"shape {tuple(shape)}; a shape has at most {_MOST_DIMENSIONS} sizes, whole numbers "
            "of 0 or more, whose product 64 bits can hold. Send the tensor's shape."
        )


def _is_shape(shape: Sequence[object]) -> bool:
    if len(shape) > _MOST_DIMENSIONS:
        return False
    product = 1
    for size in shape:
        if type(size) is not int or size < 0:
            return False
        product *= size or 1  # even the strides of a tensor without elements are such products
    return product < 2**63


def copied(data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that some bytes are, as many as it has, in memory of torch's own.

    The last bits of a matrix product can depend on how its operands are aligned in memory, and
    torch aligns its own always alike. So what was received gives the bits that it would have
    given where it was made.
    """
    tensor = torch.empty(shape, dtype=dtype)
    if len(data):
        as_bytes_view(tensor)[:] = data
    return tensor


def payload_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes that tensors take on the wire, headers left out."""
    return sum(tensor.nbytes for tensor in tensors)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether every element is a number; integers always are."""
    if not tensor.is_floating_point():
        return True
    # No element of a finite sum is NaN or infinite. It takes a fraction of the time that a
    # look at each element does, which is left for a sum that overflows.
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())
