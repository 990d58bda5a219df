"""The server's end of the live connections: one gRPC service in a thread of its own.

Only that thread's event loop touches the state of nodes and connections. What arrives is
put into one queue, from which the transport takes it.
"""

import asyncio
import hmac
import queue
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import grpc

from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.transport.local_pipes import LocalPipes
from flower_psl.transport.loopback import is_loopback_peer
from flower_psl.transport.memory_offers import offer_memory
from flower_psl.transport.stream_connection import (
    Arrival,
    Connection,
    Event,
    Garbled,
    Node,
    Request,
)
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.transport.stream_ticket import (
    HELLO,
    METHOD,
    SERVICE,
    channel_options,
    check_length,
)
from flower_psl.transport.stream_tls import Certificate
from flower_psl.wire import frames
from flower_psl.wire.frames import Frame, Kind

_THREAD_TIMEOUT_S = 30.0
_STOP_GRACE_S = 2.0
# A stream that is not let in costs little: it is judged by its metadata, of which gRPC takes
# 16 KB at most, before anything of it is read, and ends at once.
_LONGEST_HELLO_BYTES = 1024
# Whoever connects has this long for the handshake, and then as long to open a stream.
_STRANGERS_PATIENCE_MS = 5_000
# Connections beyond these and one a node are closed unheard. Nodes that are admitted when the
# server listens already take some of them.
_SPARE_CONNECTIONS = 256
# Bytes that are no frame change nothing if the answer that is awaited follows so soon. Otherwise
# they were that answer; only a process that has proved to be the node can have sent them.
_SECOND_CHANCE_S = 1.0
# Each pair of pipes is two open files, and four until the other side has opened them.
_MOST_WITH_PIPES = 64
_ANSWERS = (Kind.DESCRIPTION, Kind.REPLY, Kind.ERROR)


class _RefusedError(Exception):
    """A stream that gets nothing."""


class StreamServer:
    """Listens for nodes, knows them by their tokens, and passes frames on.

    Parameters
    ----------
    settings : StreamSettings
        Where to listen, and the bounds.
    certificate : Certificate or None
        What the server proves itself with; None for plain text.

    Attributes
    ----------
    arrivals : queue.SimpleQueue of Arrival
        What nodes did, in order.
    refused : Counter of str
        How many streams and frames were refused, by reason.
    """

    def __init__(self, settings: StreamSettings, certificate: Certificate | None) -> None:
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.refused: Counter[str] = Counter()
        self._settings = settings
        self._certificate = certificate
        self._nodes: dict[int, Node] = {}
        self._connections: set[Connection] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._over = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="psl-stream", daemon=True)
        self._port: Future[int] = Future()
        self._stop = asyncio.Event()

    def start(self) -> int:
        """Start to listen, and return the port.

        Raises
        ------
        ConfigError
            If the address cannot be listened on.
        """
        self._thread.start()
        return self._port.result(_THREAD_TIMEOUT_S)

    def admit(self, nodes: Iterable[int]) -> dict[int, str]:
        """Return a new token for each node; who has none is not let in."""
        tokens = {node: secrets.token_hex(32) for node in nodes}
        self._call(lambda: self._nodes.update({n: Node(token) for n, token in tokens.items()}))
        return tokens

    def send(self, requests: Mapping[int, Request]) -> None:
        """Send each node a request, now or when it is back.

        Raises
        ------
        ProtocolError
            If a frame is longer than nodes accept.
        """
        for node, request in requests.items():
            for data in (request.data, request.weights or b""):
                check_length(data, self._settings.max_frame_bytes, f"the request to node {node}")
        self._call(lambda: self._send(requests))

    def give_up(self, nodes: Iterable[int]) -> None:
        """Wait no more for what these nodes have not answered, and do not ask it again."""
        self._call(lambda: self._give_up(nodes))

    def absent(self) -> list[int]:
        """Return the nodes that are lost, and those that have never come."""
        answer: Future[list[int]] = Future()
        self._call(
            lambda: answer.set_result([n for n, node in self._nodes.items() if node.is_absent])
        )
        return answer.result(_THREAD_TIMEOUT_S)

    def goodbye(self) -> None:
        """Tell every node that the session is over, now or when it comes (back)."""
        self._call(self._goodbye)

    def stop(self) -> None:
        """End all connections and the thread."""
        self._call(self._stop.set)
        self._thread.join(_THREAD_TIMEOUT_S)

    def _call(self, function: Any) -> None:
        self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # whatever it is, `start` must not wait for the port
            if not self._port.done():
                self._port.set_exception(error)
            else:
                raise
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        options = [
            *channel_options(self._settings.reconnect_timeout_s, self._settings.max_frame_bytes),
            ("grpc.server_handshake_timeout_ms", _STRANGERS_PATIENCE_MS),
            ("grpc.max_connection_idle_ms", _STRANGERS_PATIENCE_MS),
            ("grpc.max_allowed_incoming_connections", len(self._nodes) + _SPARE_CONNECTIONS),
            # Else a second server could listen on the same port and get half of the nodes.
            ("grpc.so_reuseport", 0),
        ]
        server = grpc.aio.server(options=options)
        exchange = grpc.stream_stream_rpc_method_handler(self._exchange)
        handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: exchange})
        server.add_generic_rpc_handlers((handler,))
        try:
            port = self._add_port(server)
        except RuntimeError as error:
            raise ConfigError(
                f"stream address {self._settings.address!r} cannot be listened on ({error}); "
                "give a host of this machine and a free port, or port 0"
            ) from error
        await server.start()
        self._port.set_result(port)
        await self._stop.wait()
        await server.stop(_STOP_GRACE_S)

    def _add_port(self, server: grpc.aio.Server) -> int:
        if self._certificate is None:
            return int(server.add_insecure_port(self._settings.address))
        pair = (self._certificate.key, self._certificate.certificate)
        credentials = grpc.ssl_server_credentials([pair])
        return int(server.add_secure_port(self._settings.address, credentials))

    async def _exchange(self, _: object, context: Any) -> None:
        """Serve one stream, as long as it lasts."""
        connection = Connection(is_local=is_loopback_peer(context.peer()))
        self._connections.add(connection)
        writer = asyncio.create_task(connection.write(context))
        try:
            self._receive(connection, dict(context.invocation_metadata()).get(HELLO, b""))
            await self._offer_pipes(connection, context)
            while (data := await context.read()) is not grpc.aio.EOF:
                self._receive(connection, data)
        except _RefusedError:
            # The same for every reason, so that nothing can be learned from it.
            await context.abort(grpc.StatusCode.UNAUTHENTICATED)
        finally:
            writer.cancel()
            connection.close()
            self._connections.discard(connection)
            self._disconnect(connection)

    async def _offer_pipes(self, connection: Connection, context: Any) -> None:
        """Offer pipes to a process of nodes on this machine."""
        node = next(iter(connection.nodes), None)
        if (
            node is None
            or not (self._settings.shared_memory and connection.is_local)
            or sum(each.may_use_pipes for each in self._connections) >= _MOST_WITH_PIPES
        ):
            return

        def take(message: bytes) -> None:
            for frame in frames.split(message):
                self._receive(connection, frame)

        def end(error: ProtocolError | None) -> None:
            if error is not None:
                self.refused["malformed frame"] += 1
            # Whose process is gone is missed by the stream. If not, the nodes are to come again.
            self._loop.call_later(_SECOND_CHANCE_S, self._end, connection, context)

        await connection.offer_pipes(node, LocalPipes(take, end, self._settings.max_frame_bytes))

    def _end(self, connection: Connection, context: Any) -> None:
        """End a stream, if it has not ended."""

        async def abort() -> None:
            with suppress(grpc.aio.AbortError):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "its pipes were closed")

        if connection in self._connections:
            task = self._loop.create_task(abort())
            self._ending.add(task)  # a task that nobody holds may vanish
            task.add_done_callback(self._ending.discard)

    def _receive(self, connection: Connection, data: bytes | memoryview) -> None:
        if not connection.nodes and len(data) > _LONGEST_HELLO_BYTES:
            self._refuse(connection, "long first frame")
        try:
            frame = frames.unpack(data)
        except ProtocolError as error:
            self._refuse(connection, "malformed frame")
            for name in connection.nodes:
                if (request := self._nodes[name].outstanding) is not None:
                    garbled = Garbled(request.sequence, error)
                    self._loop.call_later(
                        _SECOND_CHANCE_S, self._take_garbled, connection, name, garbled
                    )
            return
        if frame.kind is Kind.HELLO:
            self._connect(connection, frame)
            return
        node = self._nodes.get(frame.node)
        if node is None or node.connection is not connection:
            self._refuse(connection, "frame of another node")
        elif frame.kind is Kind.OPENED and node.offer is not None:
            if (memory := node.take_offer(frame.values.get("opened") is True)) is not None:
                self.arrivals.put(Arrival(frame.node, memory))
        elif frame.kind is Kind.PIPES and connection.offer is not None:
            connection.take_offer(frame.values.get("opened") is True)
        elif frame.kind not in _ANSWERS:
            self._refuse(connection, "frame of a kind that nodes do not send")
        elif node.settle(frame.sequence):
            self.arrivals.put(Arrival(frame.node, frame))
        elif frame.sequence in node.given_up:
            node.given_up.remove(frame.sequence)
            if not node.given_up and node.outstanding is None:
                self.arrivals.put(Arrival(frame.node, Event.CAUGHT_UP))
        else:
            self._refuse(connection, "frame for another request")

    def _take_garbled(self, connection: Connection, name: int, garbled: Garbled) -> None:
        """Take bytes that are no frame for a node's answer, if no other has followed them."""
        node = self._nodes[name]
        if node.connection is connection and node.settle(garbled.sequence):
            self.arrivals.put(Arrival(name, garbled))

    def _connect(self, connection: Connection, frame: Frame) -> None:
        node = self._nodes.get(frame.node)
        given = str(frame.values.get("token"))
        # JSON can hold half a surrogate pair, which UTF-8 has no bytes for.
        given_bytes = given.encode(errors="replace")
        # Compared for unknown nodes too: how long it takes tells nothing.
        known = node.token if node else secrets.token_hex(32)
        if not hmac.compare_digest(given_bytes, known.encode()) or node is None:
            self._refuse(connection, "wrong token")
            return
        if node.connection is not None:
            self._refuse(connection, "second connection of a node")
            return
        node.come(connection)
        connection.nodes.add(frame.node)
        if self._over:
            connection.send(frames.pack(Kind.GOODBYE, frame.node, 0, {}))
            return
        if self._settings.shared_memory and connection.is_local:
            nodes = self._nodes.values()
            node.offer = offer_memory(node, nodes, self._settings.max_frame_bytes)
        offered = node.offer.to_values() if node.offer is not None else {}
        connection.send(frames.pack(Kind.WELCOME, frame.node, 0, offered))
        node.ask_again()
        self.arrivals.put(Arrival(frame.node, Event.CAME))

    def _refuse(self, connection: Connection, reason: str) -> None:
        """Count what is not to be; it ends a stream that is not let in, and no other."""
        self.refused[reason] += 1
        if not connection.nodes:
            raise _RefusedError

    def _disconnect(self, connection: Connection) -> None:
        for name in connection.nodes:
            node = self._nodes[name]
            if node.connection is not connection:
                continue
            node.go()
            if not self._over:
                node.deadline = self._loop.call_later(
                    self._settings.reconnect_timeout_s, self._lose, name
                )

    def _lose(self, name: int) -> None:
        self._nodes[name].is_absent = True
        self.arrivals.put(Arrival(name, Event.LOST))

    def _send(self, requests: Mapping[int, Request]) -> None:
        for name, request in requests.items():
            self._nodes[name].ask(request)

    def _give_up(self, nodes: Iterable[int]) -> None:
        for name in nodes:
            self._nodes[name].give_up()

    def _goodbye(self) -> None:
        self._over = True
        for name, node in self._nodes.items():
            if node.connection is not None:
                node.connection.send(frames.pack(Kind.GOODBYE, name, 0, {}))
            if node.deadline is not None:
                node.deadline.cancel()
