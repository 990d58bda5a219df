"""Nested state as bytes: a safetensors file that any of its tools can read.

The tensors are those of the state, by their paths. The file's metadata have ``sha256``, a
checksum of everything else (taken with zeros in its place), ``format``, and ``state``, the
rest of the state as `storage.state_tree` writes it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import safetensors
import torch
from safetensors.torch import load
from torch import Tensor

from flower_psl.errors import CheckpointError
from flower_psl.storage.state_tree import flatten, unflatten

State = dict[str, Any]

# Raised whenever a saved state changes its meaning.
FORMAT = 1

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_LENGTH_BYTES = 8
# Every file begins with it, behind its first length, so that the checksum has its place.
_BEFORE_CHECKSUM = b'{"__metadata__":{"sha256":"'
_NO_CHECKSUM = b"0" * 64
_CHECKSUM = slice(
    _LENGTH_BYTES + len(_BEFORE_CHECKSUM),
    _LENGTH_BYTES + len(_BEFORE_CHECKSUM) + len(_NO_CHECKSUM),
)


class DamagedStateError(CheckpointError):
    """A saved state that is not whole, or not what was written."""


def pack_state(state: State) -> Sequence[bytes | memoryview]:
    """Return a state as pieces that make one file; tensors on the CPU are not copied.

    Parameters
    ----------
    state : dict
        As `storage.state_tree` says, with strings as keys.

    Raises
    ------
    CheckpointError
        If it holds what a file cannot.
    """
    tensors: dict[str, Tensor] = {}
    tree = flatten(state, tensors)
    header: dict[str, object] = {
        "__metadata__": {
            "sha256": _NO_CHECKSUM.decode(),
            "format": str(FORMAT),
            "state": json.dumps(tree, separators=(",", ":"), allow_nan=False),
        }
    }
    views, start = [], 0
    for name, tensor in tensors.items():
        view = _view(name, tensor)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(view)],
        }
        start += len(view)
        views.append(view)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    head = bytearray(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    digest = hashlib.sha256(head)
    for view in views:
        digest.update(view)
    head[_CHECKSUM] = digest.hexdigest().encode()
    return [bytes(head), *views]


def unpack_state(data: bytes, where: str) -> State:
    """Return the state that `pack_state` was given.

    Parameters
    ----------
    data : bytes
        The whole file.
    where : str
        What it is, for messages.

    Returns
    -------
    dict
        Its tensors own memory that torch has allocated.

    Raises
    ------
    DamagedStateError
        If the bytes are not those that were written.
    CheckpointError
        If they are, but no state of this version.
    """
    head = bytearray(data[: _CHECKSUM.stop])
    if len(head) < _CHECKSUM.stop or not head[_LENGTH_BYTES:].startswith(_BEFORE_CHECKSUM):
        raise DamagedStateError(
            f"{where}: its {len(data)} bytes do not begin as a saved state does; it was cut off "
            "or is something else. Use one that is whole."
        )
    found = bytes(head[_CHECKSUM])
    head[_CHECKSUM] = _NO_CHECKSUM
    digest = hashlib.sha256(head)
    digest.update(memoryview(data)[_CHECKSUM.stop :])
    if digest.hexdigest().encode() != found:
        raise DamagedStateError(
            f"{where}: its checksum is not that of its {len(data)} bytes; it was cut off or "
            "changed. Use one that is whole."
        )
    try:
        return _read(data)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (safetensors.SafetensorError, *_UNREADABLE) as error:
        raise CheckpointError(
            f"{where}: its header cannot be read ({type(error).__name__}: {error}). Use a "
            "checkpoint that nobody has changed."
        ) from error


def _read(data: bytes) -> State:
    text_end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    metadata = json.loads(data[_LENGTH_BYTES:text_end])["__metadata__"]
    if metadata["format"] != str(FORMAT):
        raise CheckpointError(
            f"a saved state of format {metadata['format']}; this version of flower-psl reads and "
            f"writes {FORMAT}. Go on with the version that wrote it."
        )
    # Where a tensor lies can change the last bits of what is computed with it.
    tensors = {name: tensor.clone() for name, tensor in load(data).items()}
    state = unflatten(json.loads(metadata["state"]), tensors)
    if not isinstance(state, dict):
        raise CheckpointError(f"a saved state is a {type(state).__name__}; it is a dict of parts")
    return state


def _view(name: str, tensor: Tensor) -> memoryview:
    if tensor.dtype not in _DTYPES:
        known = [str(dtype).removeprefix("torch.") for dtype in _DTYPES]
        raise CheckpointError(
            f"{name} is {tensor.dtype}; a checkpoint holds {', '.join(known)}. Convert it, or run "
            "without checkpoints."
        )
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
