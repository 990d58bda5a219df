"""Memory that the server shares with a node on its own machine.

Tensors that lie there are copied twice, into it and out of it, by the two processes that need
them. Over a connection they are also joined, encrypted, taken to the kernel and back in pieces,
and decrypted.

The memory is an anonymous file of Linux (``memfd_create``), which the node opens through the
server's entry in ``/proc``. The kernel grants that to processes of the same user only, which
could read each other's memory anyway, and takes the memory back when both have ended, in
whatever way. A node that cannot open it, for being on another machine, in another container or
of another user, is served over the connection alone.
"""

import fcntl
import hmac
import logging
import os
import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire import frames
from flower_psl.wire.frames import Frame, Kind
from flower_psl.wire.tensor_table import Pieces, unpack_tensors
from flower_psl.wire.tensors import as_bytes_view

_LOG = logging.getLogger("flwr.psl")

# What is shorter goes with its frame: it takes longer to look for than to send.
_LEAST_BYTES = 16_384
# The secret by which a node knows that it opened what it was offered has a page of its own.
_PAGE_BYTES = 4096
_SECRET_BYTES = 32
_NAME = "flower-psl"


class SharedMemory:
    """What one side puts into the memory, and what it finds there.

    Each direction holds the tensors of one frame. Since a node has one request at a time, they
    have been read when the answer to them comes, and the next request tells that the answer was.

    Parameters
    ----------
    outbox, inbox : memoryview
        Bytes of this side, and of the other side.
    """

    def __init__(self, outbox: memoryview, inbox: memoryview) -> None:
        self._outbox = outbox
        self._inbox = inbox
        self._is_free = True

    def put(self, tensors: Pieces) -> int:
        """Put tensors there and return their bytes; 0 if they go with their frame.

        They do if they are short, do not fit, or what was put before may not have been read.
        """
        length = sum(len(piece) for piece in tensors)
        if not self._is_free or not _LEAST_BYTES <= length <= len(self._outbox):
            return 0
        self._is_free = False
        at = 0
        for piece in tensors:
            self._outbox[at : at + len(piece)] = piece
            at += len(piece)
        return length

    def free(self) -> None:
        """Note that the other side has read what was put."""
        self._is_free = True

    def sent(self, length: int) -> memoryview:
        """Return what was put last."""
        return self._outbox[:length]

    def received(self, length: int) -> memoryview:
        """Return what the other side has put; it can still change that.

        Raises
        ------
        ProtocolError
            If it is more than there is room for.
        """
        if length > len(self._inbox):
            raise ProtocolError(
                f"a frame with {length} bytes of tensors in a shared memory of "
                f"{len(self._inbox)}; longer ones go with the frame. Install the same "
                "flower-psl on both sides."
            )
        return self._inbox[:length]


class MemoryOffer:
    """The server's end of a memory, until the node has opened it or cannot.

    Parameters
    ----------
    capacity_bytes : int
        Room for the tensors of one frame, each way. What is not used takes no memory.

    Raises
    ------
    OSError
        If the system has no such memory, or no more of it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._capacity_bytes = capacity_bytes
        self._file = -1
        if not hasattr(os, "memfd_create"):
            raise OSError("only Linux has memory that can be shared in this way")
        self._file = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(self._file, 0o600)
        os.truncate(self._file, _PAGE_BYTES + 2 * capacity_bytes)
        # Else a node could cut it off, and whoever then touches it is killed.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.pwrite(self._file, self._secret, 0)
        outbox, inbox = _mapped(self._file, capacity_bytes)
        self.memory = SharedMemory(outbox, inbox)

    def to_values(self) -> dict[str, int | str]:
        """Return what a node needs to open it."""
        return {
            "process": os.getpid(),
            "file": self._file,
            "capacity-bytes": self._capacity_bytes,
            "secret": self._secret.hex(),
        }

    def __del__(self) -> None:
        """Let nobody open it any more; who has opened it keeps it."""
        if self._file >= 0:
            os.close(self._file)


def offer_memory(capacity_bytes: int) -> MemoryOffer | None:
    """Return memory for a node to open, or None where there is none to be had."""
    try:
        return MemoryOffer(capacity_bytes)
    except OSError as error:
        _LOG.debug("no memory to share: %s", error)
        return None


def open_offered(values: Mapping[str, object]) -> SharedMemory | None:
    """Return the node's end of a memory that the server offers; None if it is out of reach.

    Parameters
    ----------
    values : mapping
        As `MemoryOffer.to_values` returns them.
    """
    process, file, capacity_bytes = (
        values.get(name) for name in ("process", "file", "capacity-bytes")
    )
    secret = values.get("secret")
    if (
        not isinstance(process, int)
        or not isinstance(file, int)
        or not isinstance(capacity_bytes, int)
        or not isinstance(secret, str)
    ):
        return None
    try:
        opened = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _checked(opened, capacity_bytes, secret)
    except OSError:
        return None
    finally:
        os.close(opened)


def _checked(file: int, capacity_bytes: int, secret: str) -> SharedMemory | None:
    """Return the memory of a file, if it is the one with this secret and cannot be cut off."""
    # Only memory has seals: on another machine the path can lead to any file.
    if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        return None
    if os.fstat(file).st_size != _PAGE_BYTES + 2 * capacity_bytes:
        return None
    found = os.pread(file, _SECRET_BYTES, 0).hex()
    if not hmac.compare_digest(found.encode(), secret.encode()):
        return None
    inbox, outbox = _mapped(file, capacity_bytes)
    return SharedMemory(outbox, inbox)


def pack_with(
    memory: SharedMemory | None,
    kind: Kind,
    node: int,
    sequence: int,
    values: Mapping[str, object],
    tensors: Pieces,
) -> bytes:
    """Return a frame as `frames.pack` does, its tensors in a memory if they can be."""
    length = memory.put(tensors) if memory is not None else 0
    if length:
        return frames.pack(kind, node, sequence, values, in_memory_bytes=length)
    return frames.pack(kind, node, sequence, values, tensors)


def tensors_of(frame: Frame, memory: SharedMemory | None) -> dict[str, Tensor]:
    """Return a frame's tensors, in memory of their own, wherever they lie.

    Raises
    ------
    ProtocolError
        If they cannot be read, or lie in a memory that there is not.
    """
    if not frame.in_memory_bytes:
        return unpack_tensors(frame.tensors)
    if memory is None:
        raise ProtocolError(
            f"a frame with {frame.in_memory_bytes} bytes of tensors in a shared memory; this "
            "connection has none. Send them with the frame."
        )
    return unpack_tensors(memory.received(frame.in_memory_bytes))


def _mapped(file: int, capacity_bytes: int) -> tuple[memoryview, memoryview]:
    """Return what the server and what the node puts there."""
    # Python's own mapping would keep a file open for each node.
    size = _PAGE_BYTES + 2 * capacity_bytes
    whole = as_bytes_view(
        torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)
    )
    middle = _PAGE_BYTES + capacity_bytes
    return whole[_PAGE_BYTES:middle], whole[middle:]
