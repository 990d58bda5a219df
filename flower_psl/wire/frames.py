"""Frames of bytes, for a live connection: a fixed header, small values, tensors.

A frame is

====================  =======================================================
bytes                 content
====================  =======================================================
4                     ``PSLF``
1, 1, 2               protocol version, kind, where the tensors are (0 or 1)
8, 8                  node id, sequence number of the request (little-endian)
4, 8                  length of the values and of the tensors, in bytes
values                JSON object
tensors               safetensors, or nothing
====================  =======================================================

The tensors are with the frame (0), or in a memory that both ends share (1).
"""

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

from flower_psl.errors import ProtocolError
from flower_psl.wire.describe import PROTOCOL_VERSION
from flower_psl.wire.json_text import LONGEST_TEXT_BYTES, from_json, to_json
from flower_psl.wire.tensor_table import Pieces

_MAGIC = b"PSLF"
_HEADER = struct.Struct("<4sBBHQQIQ")
_WITH_FRAME, _IN_MEMORY = 0, 1
LONGEST_WITHOUT_TENSORS_BYTES = _HEADER.size + LONGEST_TEXT_BYTES
# Among a request's values: whether the weights sent before it belong to it, and the id of the
# step that the node is to make ready for when it has answered.
SHARED = "shared-weights"
AHEAD = "ahead"


class Kind(IntEnum):
    """What a frame is. The numbers are those on the wire.

    Nodes send HELLO (with their token), OPENED (whether they opened the memory that they were
    offered), DESCRIPTION, REPLY and ERROR; the server WELCOME (with that offer), DESCRIBE,
    REQUEST, GOODBYE, and WEIGHTS, which the requests that follow on the connection share. PIPES
    is an offer of the server, a node's answer to it (whether it opened them), and then, without
    values, the last frame that the server sends beside them.
    """

    HELLO = 1
    WELCOME = 2
    DESCRIBE = 3
    DESCRIPTION = 4
    REQUEST = 5
    REPLY = 6
    ERROR = 7
    GOODBYE = 8
    WEIGHTS = 9
    OPENED = 10
    PIPES = 11


_KINDS = {int(kind): kind for kind in Kind}


class Frame(NamedTuple):
    """A frame that was read; its tensors are still bytes, with it or in a shared memory."""

    kind: Kind
    node: int
    sequence: int
    values: Mapping[str, object]
    tensors: memoryview
    in_memory_bytes: int = 0


def pack(
    kind: Kind,
    node: int,
    sequence: int,
    values: Mapping[str, object],
    tensors: Pieces = (),
    *,
    in_memory_bytes: int = 0,
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
        As `tensor_table.pack_tensors` returns them. They are copied once, here.
    in_memory_bytes : int
        How many bytes of tensors are in a shared memory instead.

    Raises
    ------
    ProtocolError
        If the values are longer than `json_text.LONGEST_TEXT_BYTES`.
    """
    text = to_json(values, "a frame's values").encode()
    length = in_memory_bytes or sum(len(piece) for piece in tensors)
    place = _IN_MEMORY if in_memory_bytes else _WITH_FRAME
    header = _HEADER.pack(_MAGIC, PROTOCOL_VERSION, kind, place, node, sequence, len(text), length)
    return b"".join([header, text, *tensors])


def split(data: bytes) -> Iterator[memoryview]:
    """Yield the frames that were sent as one message, one after the other.

    Raises
    ------
    ProtocolError
        If the last one is not whole.
    """
    rest = memoryview(data)
    while len(rest):
        if len(rest) < _HEADER.size:
            raise ProtocolError(
                f"a message that ends with {len(rest)} bytes of a frame; its header alone has "
                f"{_HEADER.size}. Send it whole."
            )
        _, _, _, place, _, _, values_length, tensors_length = _HEADER.unpack_from(rest)
        length = _frame_bytes(place, values_length, tensors_length)
        yield rest[:length]
        rest = rest[length:]


def whole_bytes(data: bytes | bytearray, max_frame_bytes: int) -> int:
    """Return how many bytes the frames have that came whole, of bytes that come in pieces.

    Raises
    ------
    ProtocolError
        If what follows them is not the beginning of a frame, or of one that is too long.
    """
    at = 0
    while len(data) - at >= _HEADER.size:
        magic, _, _, place, _, _, values_length, tensors_length = _HEADER.unpack_from(data, at)
        length = _frame_bytes(place, values_length, tensors_length)
        if magic != _MAGIC or length > max_frame_bytes:
            raise ProtocolError(
                f"bytes that begin with {bytes(data[at : at + 8])!r} are no frame of flower-psl "
                f"of at most {max_frame_bytes} bytes"
            )
        if len(data) - at < length:
            break
        at += length
    return at


def unpack(data: bytes | memoryview) -> Frame:
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
    magic, version, kind, place, node, sequence, values_length, tensors_length = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC or place not in (_WITH_FRAME, _IN_MEMORY):
        raise ProtocolError(
            f"bytes that begin with {bytes(data[:8])!r} are no frame of flower-psl"
        )
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"a frame of protocol {version}; this side speaks {PROTOCOL_VERSION}. Install the "
            "same flower-psl on both sides."
        )
    if kind not in _KINDS:
        raise ProtocolError(f"a frame of kind {kind}; known are {list(_KINDS)}")
    promised = _frame_bytes(place, values_length, tensors_length)
    if len(data) != promised:
        raise ProtocolError(
            f"a frame of {len(data)} bytes whose header promises {promised}; it was cut off or "
            "changed. Send it again."
        )
    tensors_at = _HEADER.size + values_length
    data = memoryview(data)
    values = from_json(data[_HEADER.size : tensors_at], "a frame's values")
    in_memory_bytes = tensors_length if place == _IN_MEMORY else 0
    return Frame(_KINDS[kind], node, sequence, values, data[tensors_at:], in_memory_bytes)


def _frame_bytes(place: int, values_length: int, tensors_length: int) -> int:
    """Return how long a frame is whose header says this."""
    with_frame = 0 if place == _IN_MEMORY else tensors_length
    return _HEADER.size + values_length + with_frame
