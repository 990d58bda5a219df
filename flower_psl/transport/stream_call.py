"""One open stream as the devices see it, with the pipes beside it."""

import asyncio

import grpc

from flower_psl.errors import ProtocolError
from flower_psl.transport.local_pipes import LocalPipes, open_offered
from flower_psl.wire import frames
from flower_psl.wire.frames import Frame, Kind


class StreamCall:
    """Where frames come from and go to, whichever way they take.

    Parameters
    ----------
    call : grpc.aio.StreamStreamCall
        The stream.
    max_frame_bytes : int
        Largest frame.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall, max_frame_bytes: int) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._messages: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())
        self._pipes = LocalPipes(self._messages.put_nowait, self._lose_pipes, max_frame_bytes)
        self._uses_pipes = False

    async def read(self) -> bytes:
        """Return the next message: one frame or several.

        Raises
        ------
        ConnectionError, grpc.RpcError
            If the connection has ended.
        """
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, frame: bytes) -> None:
        """Send a frame."""
        async with self._writing:
            if self._uses_pipes:
                self._pipes.write(frame)
                await self._drain()
            else:
                await self._write_to_stream(frame)

    def join(self, hello: bytes) -> None:
        """Let one more device join, from any thread."""
        asyncio.run_coroutine_threadsafe(self.write(hello), self._loop)

    async def take_pipes(self, frame: Frame) -> None:
        """Open the pipes that the server offers and write there, or read what it has written."""
        if not frame.values:
            self._pipes.read()
            return
        opened = await open_offered(frame.values, self._pipes)
        answer = frames.pack(Kind.PIPES, frame.node, 0, {"opened": opened})
        async with self._writing:
            await self._write_to_stream(answer)
            self._uses_pipes = opened

    def close(self) -> None:
        """End it."""
        self._pipes.close()
        self._reading.cancel()
        self._call.cancel()

    async def _drain(self) -> None:
        """Wait until a long frame is on its way; it does not move while a device computes."""
        if self._pipes.drained.is_set():
            return
        waiting = asyncio.create_task(self._pipes.drained.wait())
        # Not for a server that is gone, which only the stream may notice.
        await asyncio.wait((waiting, self._reading), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _write_to_stream(self, frame: bytes) -> None:
        try:
            await self._call.write(frame)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the stream has ended, and the next read says why

    async def _read(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._messages.put_nowait(data)
            self._messages.put_nowait(ConnectionError("the server ended the stream"))
        except Exception as error:  # whatever it is, `read` must not wait for ever
            self._messages.put_nowait(error)

    def _lose_pipes(self, error: ProtocolError | None) -> None:
        reason = "the server closed its pipes" if error is None else f"in its pipes came {error}"
        self._messages.put_nowait(ConnectionError(reason))
