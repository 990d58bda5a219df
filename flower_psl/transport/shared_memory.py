"""Memory that the server shares with a node on its own machine.

Tensors that lie there are copied twice, into it and out of it, by the two processes that need
them. Over a connection they are also joined, encrypted, taken to the kernel and back in pieces,
and decrypted.

The memory is an anonymous file of Linux (``memfd_create``), which the node opens through the
server's entry in ``/proc``. The kernel grants that to processes of the same user (and to root),
and takes the memory back when both have ended, in whatever way. A node that cannot open it, for
being on another machine, in another container or of another user, is served over the connection
alone.
"""

import os
import secrets
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire import frames
from flower_psl.wire.frames import Frame, Kind
from flower_psl.wire.tensor_table import Pieces, unpack_tensors
from flower_psl.wire.tensors import as_bytes_view

if sys.platform == "linux":
    import fcntl

# What is shorter goes with its frame: it takes longer to look for than to send.
LEAST_BYTES = 16_384
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
        Bytes of this side, and of the other side, as many.

    Attributes
    ----------
    capacity_bytes : int
        Room for the tensors of one frame, each way.
    """

    def __init__(self, outbox: memoryview, inbox: memoryview) -> None:
        self.capacity_bytes = len(outbox)
        self._outbox = outbox
        self._inbox = inbox
        self._unread: int | None = None

    def put(self, sequence: int, tensors: Pieces) -> int:
        """Put the tensors of a request or its reply, and return their bytes.

        It is 0 if they go with their frame: they are short, do not fit, or what was put before
        may not have been read.
        """
        length = sum(len(piece) for piece in tensors)
        if self._unread is not None or not LEAST_BYTES <= length <= self.capacity_bytes:
            return 0
        self._unread = sequence
        at = 0
        for piece in tensors:
            self._outbox[at : at + len(piece)] = piece
            at += len(piece)
        return length

    def free(self, sequence: int) -> None:
        """Note that the other side has read what was put up to a request, that included."""
        if self._unread is not None and self._unread <= sequence:
            self._unread = None

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
        if length > self.capacity_bytes:
            raise ProtocolError(
                f"a frame with {length} bytes of tensors in a shared memory of "
                f"{self.capacity_bytes}; longer ones go with the frame. Install the same "
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
        self._secret = secrets.token_hex(_SECRET_BYTES)
        self._file = -1
        if not _has_such_memory():
            raise OSError("this system has no memory that can be shared in this way")
        self._file = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(self._file, 0o600)
        os.truncate(self._file, _PAGE_BYTES + 2 * capacity_bytes)
        # Else a node could cut it off, and whoever then touches it is killed, or let it grow.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, seals)
        os.pwrite(self._file, self._secret.encode(), 0)
        outbox, inbox = _mapped(self._file, capacity_bytes)
        self.memory = SharedMemory(outbox, inbox)

    def to_values(self) -> dict[str, int | str]:
        """Return what a node needs to open it."""
        return {
            "process": os.getpid(),
            "file": self._file,
            "capacity-bytes": self.memory.capacity_bytes,
            "secret": self._secret,
        }

    def __del__(self) -> None:
        """Let nobody open it any more; who has opened it keeps it."""
        if self._file >= 0:
            os.close(self._file)


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
    path = f"/proc/{process}/fd/{file}"
    try:
        # On another machine the same numbers can stand for any file, which is not to be opened.
        if not _has_such_memory() or os.readlink(path) != f"/memfd:{_NAME} (deleted)":
            return None
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _checked(opened, capacity_bytes, secret)
        finally:
            os.close(opened)
    except OSError:
        return None


def _has_such_memory() -> bool:
    """Tell whether this system, and this Python, have memory files that can be sealed."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_GET_SEALS")


def _checked(file: int, capacity_bytes: int, secret: str) -> SharedMemory | None:
    """Return the memory of a file, if it is the one with this secret and cannot be cut off."""
    if (
        not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        or os.fstat(file).st_size != _PAGE_BYTES + 2 * capacity_bytes
        or os.pread(file, 2 * _SECRET_BYTES, 0) != secret.encode(errors="replace")
    ):
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
    length = memory.put(sequence, tensors) if memory is not None else 0
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
    size = _PAGE_BYTES + 2 * capacity_bytes
    try:
        # Python's own mapping would keep a file open for each node.
        whole = torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(f"memory cannot be mapped: {error}") from error
    data = as_bytes_view(whole)
    middle = _PAGE_BYTES + capacity_bytes
    return data[_PAGE_BYTES:middle], data[middle:]
