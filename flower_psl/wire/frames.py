"""Frames of bytes, for a live connection: a fixed header, small values, tensors.

A frame is

====================  =======================================================
bytes                 content
====================  =======================================================
4                     ``PSLF``
1, 1, 2               protocol version, kind, zero
8, 8                  node id, sequence number of the request (little-endian)
4, 8                  length of the values and of the tensors, in bytes
values                JSON object
tensors               safetensors, or nothing
====================  =======================================================
"""

import json
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.describe import PROTOCOL_VERSION
from flower_psl.wire.tensors import as_bytes_view, dtype_name, dtype_of

_MAGIC = b"PSLF"
_HEADER = struct.Struct("<4sBBHQQIQ")
_SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

# In front of the names of a request's weights, which share a table with its gradient.
WEIGHTS = "weights/"

Pieces = Sequence[bytes | memoryview]


class Kind(IntEnum):
    """What a frame is. The numbers are those on the wire."""

    HELLO = 1
    WELCOME = 2
    DESCRIBE = 3
    DESCRIPTION = 4
    REQUEST = 5
    REPLY = 6
    ERROR = 7
    GOODBYE = 8


class Frame(NamedTuple):
    """A frame that was read; its tensors are still bytes."""

    kind: Kind
    node: int
    sequence: int
    values: Mapping[str, object]
    tensors: memoryview


def pack(
    kind: Kind, node: int, sequence: int, values: Mapping[str, object], tensors: Pieces = ()
) -> bytes:
    """Return a frame.

    Parameters
    ----------
    kind : Kind
        What it is.
    node, sequence : int
        The node it is for or from, and the request it belongs to.
    values : mapping
        Small values that JSON can hold.
    tensors : sequence of bytes-like
        As `pack_tensors` returns them. They are copied once, here.
    """
    text = json.dumps(values, separators=(",", ":")).encode()
    length = sum(len(piece) for piece in tensors)
    header = _HEADER.pack(_MAGIC, PROTOCOL_VERSION, kind, 0, node, sequence, len(text), length)
    return b"".join([header, text, *tensors])


def unpack(data: bytes) -> Frame:
    """Return the frame of some bytes.

    Raises
    ------
    ProtocolError
        If they are not exactly one frame of this version and of a known kind.
    """
    if len(data) < _HEADER.size:
        raise ProtocolError(
            f"a frame of {len(data)} bytes; its header alone has {_HEADER.size}. Send it whole."
        )
    magic, version, kind, zero, node, sequence, values_length, tensors_length = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC or zero != 0:
        raise ProtocolError(f"bytes that begin with {data[:8]!r} are no frame of flower-psl")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"a frame of protocol {version}; this side speaks {PROTOCOL_VERSION}. Install the "
            "same flower-psl on both sides."
        )
    if kind not in Kind.__members__.values():
        raise ProtocolError(f"a frame of kind {kind}; known are {[int(known) for known in Kind]}")
    promised = _HEADER.size + values_length + tensors_length
    if len(data) != promised:
        raise ProtocolError(
            f"a frame of {len(data)} bytes whose header promises {promised}; it was cut off or "
            "changed. Send it again."
        )
    tensors_at = _HEADER.size + values_length
    try:
        values = json.loads(data[_HEADER.size : tensors_at])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame's values are no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ProtocolError(f"a frame's values are a {type(values).__name__}, not an object")
    return Frame(Kind(kind), node, sequence, values, memoryview(data)[tensors_at:])


def pack_tensors(tensors: Mapping[str, Tensor]) -> Pieces:
    """Return tensors as the pieces of one safetensors file, without copying them.

    Raises
    ------
    ProtocolError
        If a dtype does not travel.
    """
    if not tensors:
        return ()
    views = [as_bytes_view(tensor) for tensor in tensors.values()]
    header: dict[str, object] = {}
    start = 0
    for (name, tensor), view in zip(tensors.items(), views, strict=True):
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(view)],
        }
        start += len(view)
    text = json.dumps(header, separators=(",", ":")).encode()
    return [len(text).to_bytes(8, "little"), text, *views]


def unpack_tensors(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors of a frame.

    Raises
    ------
    ProtocolError
        If the bytes are no safetensors file, to the last byte, or a dtype does not travel.
    """
    if not len(data):
        return {}
    try:
        tensors = safetensors.torch.load(bytes(data))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProtocolError(
            f"a frame's tensors cannot be read ({error}); they were cut off or changed. Send "
            "them again."
        ) from error
    for tensor in tensors.values():
        dtype_of(dtype_name(tensor.dtype))
    return tensors
