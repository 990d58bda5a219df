"""Pipes between the server and a process of devices on its own machine.

gRPC takes a frame through several threads and an encrypted socket. On one machine frames can go
through pipes instead, which the two event loops read and write themselves. The stream stays:
it proves who is who, it is what a break is noticed by, and the pipes end with it.

The server offers the pipes as it offers memory (`shared_memory`), and they are opened in the same
way: through the server's entry in ``/proc``, which the kernel grants to the same user (and root).
Who cannot open them is served over the stream alone.

No frame in a pipe overtakes one on the stream: each side says on the stream when that carries
nothing more, first the node and then the server, and the other reads its pipe only then.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping

from flower_psl.errors import ProtocolError
from flower_psl.wire import frames

_PROCESS, _REQUESTS, _ANSWERS = "process", "requests", "answers"


class LocalPipes:
    """One side's ends: one to read frames from, one to write frames to.

    Parameters
    ----------
    take : callable
        Called with one whole frame or several, as they come.
    end : callable
        Called if the other side closes its ends, with None, or sends what is no frame, with
        what is wrong with it.
    max_frame_bytes : int
        Largest frame.

    Attributes
    ----------
    drained : asyncio.Event
        Whether all that was written is in the pipe, or never will be.
    """

    def __init__(
        self,
        take: Callable[[bytes], None],
        end: Callable[[ProtocolError | None], object],
        max_frame_bytes: int,
    ) -> None:
        self._take = take
        self._end = end
        self._max_frame_bytes = max_frame_bytes
        self._received = bytearray()
        self._is_closed = False
        self.drained = asyncio.Event()
        self.drained.set()
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None

    async def connect(self, incoming: int, outgoing: int) -> None:
        """Let two files be written and, later, read; they are closed with this."""
        loop = asyncio.get_running_loop()
        reading = os.fdopen(incoming, "rb", buffering=0)
        writing = os.fdopen(outgoing, "wb", buffering=0)
        self._reader, _ = await loop.connect_read_pipe(lambda: _Reading(self), reading)
        self._reader.pause_reading()
        self._writer, _ = await loop.connect_write_pipe(lambda: _Writing(self), writing)
        self._writer.set_write_buffer_limits(high=0)

    def read(self) -> None:
        """Begin to read; what has come before is kept."""
        if self._reader is not None:
            self._reader.resume_reading()

    def write(self, frame: bytes) -> None:
        """Send a frame after those that were sent before."""
        if self._writer is not None:
            self._writer.write(frame)

    def close(self) -> None:
        """Read and write no more."""
        self._is_closed = True
        self.drained.set()
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.abort()

    def receive(self, data: bytes) -> None:
        """Pass on the frames that have come whole."""
        self._received += data
        try:
            length = frames.whole_bytes(self._received, self._max_frame_bytes)
        except ProtocolError as error:
            self.lose(error)
            return
        if length:
            message = bytes(memoryview(self._received)[:length])
            del self._received[:length]
            self._take(message)

    def lose(self, error: ProtocolError | None) -> None:
        """Note that the other side is gone, or of no use."""
        if not self._is_closed:
            self.close()
            self._end(error)


class _End(asyncio.BaseProtocol):
    """What asyncio tells of either end."""

    def __init__(self, pipes: LocalPipes) -> None:
        self._pipes = pipes

    def connection_lost(self, _: Exception | None) -> None:
        self._pipes.lose(None)


class _Writing(_End):
    """What asyncio tells of the end that is written: when the pipe is full, and when not."""

    def pause_writing(self) -> None:
        self._pipes.drained.clear()

    def resume_writing(self) -> None:
        self._pipes.drained.set()


class _Reading(_End, asyncio.Protocol):
    """What asyncio tells of the end that is read."""

    def data_received(self, data: bytes) -> None:
        self._pipes.receive(data)


class OfferedPipes:
    """The server's pipes, with the ends of the other side until that has opened them.

    Parameters
    ----------
    pipes : LocalPipes
        What reads and writes this side's ends.
    """

    def __init__(self, pipes: LocalPipes) -> None:
        self.pipes = pipes
        self._theirs: dict[str, int] = {}

    async def open(self) -> dict[str, object]:
        """Open them, and return what a node of this machine needs to do the same.

        Raises
        ------
        OSError
            If the process has too many files open, or the system has no such entries.
        """
        if not _can_be_opened():
            raise OSError("this system has no entries of processes' files")
        requests, ours_out = os.pipe()
        self._theirs[_REQUESTS] = requests
        try:
            ours_in, self._theirs[_ANSWERS] = os.pipe()
        except OSError:
            os.close(ours_out)
            raise
        values: dict[str, object] = {_PROCESS: os.getpid()}
        for name, file in self._theirs.items():
            values[name] = [file, os.fstat(file).st_ino]
        await self.pipes.connect(ours_in, ours_out)
        return values

    def withdraw(self) -> None:
        """Let nobody open them any more; who has opened them keeps them."""
        while self._theirs:
            os.close(self._theirs.popitem()[1])

    def __del__(self) -> None:
        """Withdraw what nobody has answered."""
        self.withdraw()


def _can_be_opened() -> bool:
    """Tell whether this system lets one process open another's pipes."""
    return sys.platform == "linux"


async def open_offered(values: Mapping[str, object], pipes: LocalPipes) -> bool:
    """Open the node's ends of pipes that the server offers, and tell whether they can be.

    Parameters
    ----------
    values : mapping
        As `OfferedPipes.open` returns them.
    pipes : LocalPipes
        What is to read and write them.
    """
    if not _can_be_opened():
        return False
    files: list[int] = []
    process = values.get(_PROCESS)
    try:
        if not isinstance(process, int):
            raise OSError(f"{process!r} is no process")
        for name, way in ((_REQUESTS, os.O_RDONLY), (_ANSWERS, os.O_WRONLY)):
            file, inode = _file_and_inode(values.get(name))
            path = f"/proc/{process}/fd/{file}"
            # On another machine the same numbers can stand for any file, which is not to be
            # opened; and a pipe that was closed here can by now be a third one's.
            if os.readlink(path) != f"pipe:[{inode}]":
                raise OSError(f"{path} is not what was offered")
            files.append(os.open(path, way | os.O_NONBLOCK | os.O_CLOEXEC))
            if os.fstat(files[-1]).st_ino != inode:
                raise OSError(f"{path} is not any more what was offered")
    except OSError:
        for opened in files:
            os.close(opened)
        return False
    await pipes.connect(*files)
    return True


def _file_and_inode(offered: object) -> tuple[int, int]:
    match offered:
        case [int(file), int(inode)]:
            return file, inode
    raise OSError(f"{offered!r} is no file and its inode")
