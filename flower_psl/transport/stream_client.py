"""The devices' end of a live connection.

One thread reads, computes and writes, so that no step waits for another thread to wake. While
it computes, gRPC's own threads keep the connection alive.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import grpc
from torch import Tensor

from flower_psl.errors import ProtocolError, presentable
from flower_psl.transport.shared_memory import (
    SharedMemory,
    open_offered,
    pack_with,
    tensors_of,
)
from flower_psl.transport.stream_call import StreamCall
from flower_psl.transport.stream_ticket import (
    HELLO,
    METHOD,
    SERVICE,
    Ticket,
    channel_options,
    check_length,
)
from flower_psl.transport.transport import Device
from flower_psl.wire import frames, parts
from flower_psl.wire.frames import AHEAD, SHARED, Frame, Kind
from flower_psl.wire.tensor_table import pack_tensors, unpack_tensors

_LOG = logging.getLogger("flwr.psl")
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0


@dataclass(frozen=True)
class _Weights:
    """What all requests of one exchange share, read when the first of them comes."""

    sequence: int
    packed: memoryview

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return unpack_tensors(self.packed)

    def of(self, sequence: int) -> dict[str, Tensor]:
        if sequence != self.sequence:
            raise ProtocolError(
                f"request {sequence} came with the weights of {self.sequence}; weights go before "
                "the requests that share them. Install the same flower-psl on both sides."
            )
        return self._tensors


class StreamClient:
    """Answers the server's requests over one connection, for one device or several.

    Parameters
    ----------
    ticket : Ticket
        Where the server is, and the bounds. Its token is that of the first device.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._lock = threading.Lock()
        self._devices: dict[int, tuple[str, Device]] = {}
        self._connection: StreamCall | None = None
        self._last_contact = time.monotonic()
        self._done = threading.Event()
        self._answered = 0
        self._weights = _Weights(0, memoryview(b""))
        self._memories: dict[int, SharedMemory] = {}

    @property
    def done(self) -> bool:
        """Whether the session is over, or was given up."""
        return self._done.is_set()

    def add(self, node: int, token: str, device: Device) -> None:
        """Serve one more device; it joins a connection that is open already."""
        with self._lock:
            self._devices[node] = (token, device)
            if self._connection is not None:
                self._connection.join(_hello(node, token))

    def serve(self) -> int:
        """Answer requests until the server says goodbye for every device.

        A connection that breaks is opened again. What was not answered is asked again by
        the server.

        Returns
        -------
        int
            How many requests were answered.

        Raises
        ------
        ConnectionError
            If the server cannot be reached for `Ticket.reconnect_timeout_s`.
        """
        self._last_contact = time.monotonic()
        backoff_s = _FIRST_BACKOFF_S
        try:
            while True:
                contact = self._last_contact
                try:
                    asyncio.run(self._converse())
                    return self._answered
                except (grpc.RpcError, ConnectionError) as error:
                    if self._last_contact != contact:
                        backoff_s = _FIRST_BACKOFF_S
                    lost_s = time.monotonic() - self._last_contact
                    if lost_s > self._ticket.reconnect_timeout_s:
                        raise ConnectionError(
                            f"no connection to the server at {self._ticket.address} for "
                            f"{lost_s:.0f} s: {_words(error)}. Look at the address and the "
                            "firewall, or at the server's log."
                        ) from error
                time.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
        finally:
            self._done.set()

    async def _converse(self) -> None:
        """Hold one connection; return after the last goodbye."""
        async with _channel(self._ticket) as channel:
            with self._lock:
                first, *others = (
                    _hello(node, device[0]) for node, device in self._devices.items()
                )
                # The server reads nothing of a stream whose metadata do not let it in.
                call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(metadata=((HELLO, first),))
                connection = StreamCall(call, self._ticket.max_frame_bytes)
                self._connection = connection
            try:
                for hello in others:
                    await connection.write(hello)
                while True:
                    message = await connection.read()
                    received = [frames.unpack(frame) for frame in frames.split(message)]
                    for frame in received:
                        if frame.kind is Kind.PIPES:
                            await connection.take_pipes(frame)
                        answer = self._answer(frame)
                        if answer is not None:
                            await connection.write(answer)
                    for frame in received:
                        if AHEAD in frame.values:
                            self._prepare(frame)
                    # Only now: who computes for long has not lost the server by that.
                    self._last_contact = time.monotonic()
                    if not self._devices:
                        return
            finally:
                with self._lock:
                    self._connection = None
                connection.close()

    def _answer(self, frame: Frame) -> bytes | None:
        if frame.kind is Kind.GOODBYE:
            with self._lock:
                self._devices.pop(frame.node, None)
            self._memories.pop(frame.node, None)
        elif frame.kind is Kind.WELCOME:
            return self._open_memory(frame)
        elif frame.kind is Kind.WEIGHTS:
            self._weights = _Weights(frame.sequence, frame.tensors)
        elif frame.kind in (Kind.DESCRIBE, Kind.REQUEST):
            self._answered += 1
            return self._reply(frame)
        return None

    def _open_memory(self, frame: Frame) -> bytes | None:
        """Open the memory that a connection comes with, if it does, and say whether it can be."""
        self._memories.pop(frame.node, None)  # that of an earlier connection
        if not frame.values:
            return None
        memory = open_offered(frame.values)
        if memory is not None:
            self._memories[frame.node] = memory
        return frames.pack(Kind.OPENED, frame.node, 0, {"opened": memory is not None})

    def _prepare(self, frame: Frame) -> None:
        try:
            _, device = self._devices[frame.node]
            with _no_running_loop():
                device.prepare(parts.step_id_of(frame.values, AHEAD))
        except Exception:  # the request that follows fails in the same way, and is answered
            _LOG.debug("node %d could not prepare a step", frame.node, exc_info=True)

    def _reply(self, frame: Frame) -> bytes:
        try:
            _, device = self._devices[frame.node]
            if frame.kind is Kind.DESCRIBE:
                with _no_running_loop():
                    values = parts.description_config(device.describe())
                return frames.pack(Kind.DESCRIPTION, frame.node, frame.sequence, values)
            weights = self._weights.of(frame.sequence) if frame.values.get(SHARED) else {}
            memory = self._memories.get(frame.node)
            if memory is not None:
                memory.free(frame.sequence)
            tensors = tensors_of(frame, memory)
            request = parts.request_of(frame.values, weights, tensors)
            with _no_running_loop():
                reply = device.handle(request)
            answer = pack_with(
                memory,
                Kind.REPLY,
                frame.node,
                frame.sequence,
                parts.reply_config(reply),
                pack_tensors(parts.reply_tensors(reply)),
            )
            check_length(answer, self._ticket.max_frame_bytes, "the reply")
            return answer
        except Exception as error:  # whatever the device raises is the server's to judge
            _LOG.exception("node %d could not answer the server", frame.node)
            reason = presentable(f"{type(error).__name__}: {error}")
            return frames.pack(Kind.ERROR, frame.node, frame.sequence, {"reason": reason})


@contextmanager
def _no_running_loop() -> Iterator[None]:
    """Hide the event loop from a device, whose data set may run one of its own."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def _channel(ticket: Ticket) -> grpc.aio.Channel:
    """Open a channel on which the ticket's certificate is the only root."""
    options: list[tuple[str, int | str]] = [
        *channel_options(ticket.reconnect_timeout_s, ticket.max_frame_bytes),
        # The connection is this process's own, whatever proxy it has for others.
        ("grpc.enable_http_proxy", 0),
    ]
    if ticket.server_name:
        options.append(("grpc.ssl_target_name_override", ticket.server_name))
    if ticket.certificate:
        roots = grpc.ssl_channel_credentials(root_certificates=ticket.certificate.encode())
        return grpc.aio.secure_channel(ticket.address, roots, options)
    return grpc.aio.insecure_channel(ticket.address, options)


def _hello(node: int, token: str) -> bytes:
    return frames.pack(Kind.HELLO, node, 0, {"token": token})


def _words(error: Exception) -> str:
    return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else str(error)
