"""Tensors as one run of bytes in the format of safetensors, copied once in reading.

The format is an 8-byte length, a JSON table of that length, and the tensors' bytes: see
https://github.com/huggingface/safetensors. The library copies what it reads twice over where
the bytes are part of a longer message, and a large copy takes longer than the network.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.tensors import as_bytes_view, copied

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
        If a dtype does not travel.
    """
    if not tensors:
        return ()
    views = [as_bytes_view(tensor) for tensor in tensors.values()]
    table: dict[str, object] = {}
    start = 0
    for (name, tensor), view in zip(tensors.items(), views, strict=True):
        table[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(view)],
        }
        start += len(view)
    text = json.dumps(table, separators=(",", ":")).encode()
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
        entries, payload = _read_table(data)
        return {entry.name: _tensor(entry, payload) for entry in _checked(entries, len(payload))}
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ProtocolError(
            f"a frame's tensors cannot be read ({error}); they were cut off or changed. Send "
            "them again."
        ) from error


def _read_table(data: memoryview) -> tuple[list[_Entry], memoryview]:
    payload_at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if payload_at > len(data):
        raise ValueError(f"a table that ends at byte {payload_at} of {len(data)}")
    table = json.loads(bytes(data[_LENGTH_BYTES:payload_at]))
    entries = []
    for name, entry in table.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {entry['dtype']!r}; the wire carries {sorted(_DTYPES)}")
        numbers = [*entry["shape"], *entry["data_offsets"]]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(
                f"{name!r} has the sizes and offsets {numbers}, not all whole numbers"
            )
        start, end = entry["data_offsets"]
        entries.append(_Entry(name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start, end))
    return entries, data[payload_at:]


def _checked(entries: Sequence[_Entry], length: int) -> Iterator[_Entry]:
    """Yield the entries, which must cover the payload without gap or overlap."""
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        promised = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != at or entry.end - entry.start != promised:
            raise ValueError(
                f"{entry.name!r} of {promised} bytes lies at {entry.start} to {entry.end}; the "
                f"one before it ends at {at}"
            )
        at = entry.end
        yield entry
    if at != length:
        raise ValueError(f"tensors of {at} bytes in a payload of {length}")


def _tensor(entry: _Entry, payload: memoryview) -> Tensor:
    return copied(payload[entry.start : entry.end], entry.dtype).reshape(entry.shape)
