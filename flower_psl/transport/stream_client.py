"""The devices' end of a live connection."""

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from flower_psl.transport.stream_ticket import (
    CHANNEL_OPTIONS,
    METHOD,
    SERVICE,
    Ticket,
    check_length,
)
from flower_psl.transport.stream_tls import SERVER_NAME
from flower_psl.transport.transport import Device
from flower_psl.wire import StepRequest, frames, parts
from flower_psl.wire.frames import Frame, Kind

_LOG = logging.getLogger("flwr.psl")
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0


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
        self._outgoing: queue.SimpleQueue[bytes | None] | None = None
        self._last_contact = time.monotonic()
        self._done = threading.Event()
        self._answered = 0

    @property
    def done(self) -> bool:
        """Whether the session is over, or was given up."""
        return self._done.is_set()

    def add(self, node: int, token: str, device: Device) -> None:
        """Serve one more device; it joins a connection that is open already."""
        with self._lock:
            self._devices[node] = (token, device)
            if self._outgoing is not None:
                self._outgoing.put(_hello(node, token))

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
                    self._converse()
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

    def _converse(self) -> None:
        """Hold one connection; return after the last goodbye."""
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with _channel(self._ticket) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter(outgoing.get, None))
            with self._lock:
                self._outgoing = outgoing
                for node, (token, _) in self._devices.items():
                    outgoing.put(_hello(node, token))
            try:
                for data in call:
                    self._last_contact = time.monotonic()
                    if (answer := self._answer(frames.unpack(data))) is not None:
                        outgoing.put(answer)
                    if not self._devices:
                        return
            finally:
                with self._lock:
                    self._outgoing = None
                outgoing.put(None)
                call.cancel()
        raise ConnectionError("the server ended the stream")

    def _answer(self, frame: Frame) -> bytes | None:
        if frame.kind is Kind.WELCOME:
            return None
        if frame.kind is Kind.GOODBYE:
            with self._lock:
                self._devices.pop(frame.node, None)
            return None
        _, device = self._devices[frame.node]
        self._answered += 1
        try:
            if frame.kind is Kind.DESCRIBE:
                values = parts.description_config(device.describe())
                return frames.pack(Kind.DESCRIPTION, frame.node, frame.sequence, values)
            request = _request(frame)
            reply = device.handle(request)
            answer = frames.pack(
                Kind.REPLY,
                frame.node,
                frame.sequence,
                parts.reply_config(reply),
                frames.pack_tensors(parts.reply_tensors(reply)),
            )
            check_length(answer, self._ticket.max_frame_bytes, "the reply")
            return answer
        except Exception as error:  # whatever the device raises is the server's to judge
            _LOG.exception("node %d could not answer the server", frame.node)
            reason = {"reason": f"{type(error).__name__}: {error}"}
            return frames.pack(Kind.ERROR, frame.node, frame.sequence, reason)


def _request(frame: Frame) -> StepRequest:
    tensors = frames.unpack_tensors(frame.tensors)
    weights = {
        name.removeprefix(frames.WEIGHTS): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(frames.WEIGHTS)
    }
    return parts.request_of(frame.values, weights, tensors)


@contextmanager
def _channel(ticket: Ticket) -> Iterator[grpc.Channel]:
    """Open a channel on which the run's certificate is the only root."""
    options = [
        *CHANNEL_OPTIONS,
        ("grpc.max_receive_message_length", ticket.max_frame_bytes),
        ("grpc.ssl_target_name_override", SERVER_NAME),
        # The connection is this process's own, whatever proxy it has for others.
        ("grpc.enable_http_proxy", 0),
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates=ticket.certificate.encode())
    with grpc.secure_channel(ticket.address, credentials, options) as channel:
        yield channel


def _hello(node: int, token: str) -> bytes:
    return frames.pack(Kind.HELLO, node, 0, {"token": token})


def _words(error: Exception) -> str:
    return str(error.details()) if isinstance(error, grpc.Call) else str(error)
