"""Tensors as one run of bytes in the format of safetensors, copied once in reading.

The format is an 8-byte length, a JSON table of that length, and the tensors' bytes: see
https://github.com/huggingface/safetensors. The library copies what it reads twice over where
the bytes are part of a longer message, and a large copy takes longer than the network.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.json_text import from_json, to_json
from flower_psl.wire.tensors import as_bytes_view, check_shape, copied

Pieces = Sequence[bytes | memoryview]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
# The tables of a run are the same from step to step, so they are made, read and checked once:
# the last few that were met, and no long ones, which could fill the memory.
_KNOWN_TABLES = 64
_LONGEST_KNOWN_BYTES = 65_536
_TABLE = "the names and shapes of its tensors"


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def pack_tensors(tensors: Mapping[str, Tensor]) -> Pieces:
    """Return tensors as pieces that make one table, without copying them.

    Raises
    ------
    ProtocolError
        If a dtype does not travel, or there are more than some ten thousand tensors.
    """
    if not tensors:
        return ()
    views = [as_bytes_view(tensor) for tensor in tensors.values()]
    kinds = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    text = _text(*kinds)
    return [len(text).to_bytes(_LENGTH_BYTES, "little"), text, *views]


def unpack_tensors(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors of a table, in memory of their own.

    Raises
    ------
    ProtocolError
        If the bytes are no such table, to the last byte, or a dtype does not travel.
    """
    if not len(data):
        return {}
    try:
        text, payload = _cut(data)
        read = _known_entries if len(text) <= _LONGEST_KNOWN_BYTES else _entries
        entries = read(bytes(text), len(payload))
    except ProtocolError as error:
        raise ProtocolError(
            f"a frame's tensors cannot be read ({error}); they were cut off or changed. Send "
            "them again."
        ) from error
    return {entry.name: _tensor(entry, payload) for entry in entries}


@lru_cache(_KNOWN_TABLES)
def _text(*kinds: tuple[str, torch.dtype, torch.Size]) -> bytes:
    """Return the table of tensors of these names, dtypes and shapes."""
    table: dict[str, object] = {}
    start = 0
    for name, dtype, shape in kinds:
        end = start + math.prod(shape) * dtype.itemsize
        table[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    return to_json(table, _TABLE).encode()


def _cut(data: memoryview) -> tuple[memoryview, memoryview]:
    """Return the text of a table, and the payload behind it."""
    payload_at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if payload_at > len(data):
        raise ProtocolError(f"a table that ends at byte {payload_at} of {len(data)}")
    return data[_LENGTH_BYTES:payload_at], data[payload_at:]


def _entries(text: bytes, payload_bytes: int) -> tuple[_Entry, ...]:
    """Return the entries of a table that covers a payload, in the order of their bytes."""
    table = from_json(text, _TABLE)
    entries = [_entry(name, fields) for name, fields in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_cover(entries, payload_bytes)
    return tuple(entries)


_known_entries = lru_cache(_KNOWN_TABLES)(_entries)


def _entry(name: str, fields: object) -> _Entry:
    given = fields if isinstance(fields, dict) else {}
    dtype, shape, offsets = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if (
        not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list))
        or dtype not in _DTYPES
        or [type(offset) for offset in offsets] != [int, int]
    ):
        raise ProtocolError(
            f"{name!r} is {fields!r}; a tensor has a dtype, one of {sorted(_DTYPES)}, a shape and "
            "two data_offsets"
        )
    try:
        check_shape(shape)
    except ProtocolError as error:
        raise ProtocolError(f"{name!r} has {error}") from error
    return _Entry(name, _DTYPES[dtype], tuple(shape), *offsets)


def _check_cover(entries: Sequence[_Entry], length: int) -> None:
    """Refuse entries that, in their order, leave a gap in the payload, or overlap."""
    at = 0
    for entry in entries:
        promised = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != at or entry.end - entry.start != promised:
            raise ProtocolError(
                f"{entry.name!r} of {promised} bytes has the data_offsets {entry.start} to "
                f"{entry.end}; the one before it ends at {at}"
            )
        at = entry.end
    if at != length:
        raise ProtocolError(f"tensors of {at} bytes in a payload of {length}")


def _tensor(entry: _Entry, payload: memoryview) -> Tensor:
    return copied(payload[entry.start : entry.end], entry.dtype, entry.shape)
