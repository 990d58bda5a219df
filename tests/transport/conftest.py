"""A stream server on loopback, clients in threads, peers that misbehave, and a proxy."""

import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future

import grpc
import pytest
import torch

from flower_psl.transport import Device
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.transport.stream_ticket import HELLO, METHOD, SERVICE, Ticket
from flower_psl.transport.stream_tls import SERVER_NAME, Certificate, make_certificate
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, frames
from flower_psl.wire.frames import Frame, Kind

# Nothing here takes long; what takes this long has failed.
PATIENCE_S = 20.0


class Echo:
    """A device that answers with its node id, or with what `during` returns."""

    def __init__(
        self, node: int, during: Callable[[StepRequest], StepReply | None] = lambda _: None
    ) -> None:
        self.node = node
        self.during = during
        self.prepared: list[StepId] = []

    def describe(self) -> DescribeReply:
        return DescribeReply(client_key=self.node, num_examples=4, num_test_examples=0, segment={})

    def prepare(self, step: StepId) -> None:
        self.prepared.append(step)

    def handle(self, request: StepRequest) -> StepReply:
        return self.during(request) or StepReply(
            phase=request.phase,
            id=request.id,
            activations=torch.full((request.id.batch_size, 2), float(self.node)),
            labels=torch.zeros(request.id.batch_size, dtype=torch.int64),
        )


class Serving:
    """A `StreamClient` that serves in a thread."""

    def __init__(self, client: StreamClient) -> None:
        self.client = client
        self._outcome: Future[int] = Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome.set_result(self.client.serve())
        except BaseException as error:
            self._outcome.set_exception(error)

    def done(self) -> bool:
        return self._outcome.done()

    def answered(self) -> int:
        """Return what `serve` returned."""
        return self._outcome.result(PATIENCE_S)

    def error(self) -> BaseException | None:
        """Return what `serve` raised."""
        return self._outcome.exception(PATIENCE_S)


class RawStream:
    """A peer that sends whatever bytes it likes."""

    def __init__(self, channel: grpc.Channel, first: bytes | None) -> None:
        self._channel = channel
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._received: list[Frame] = []
        self._call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(
            iter(self._outgoing.get, None),
            timeout=PATIENCE_S,
            metadata=() if first is None else ((HELLO, first),),
        )

    def send(self, *data: bytes) -> None:
        for each in data:
            self._outgoing.put(each)

    def read(self) -> Frame:
        """Return the next frame that is not about pipes."""
        return self._next(about_pipes=False)

    def read_about_pipes(self) -> Frame:
        """Return the next frame that is, whatever comes before it."""
        return self._next(about_pipes=True)

    def _next(self, *, about_pipes: bool) -> Frame:
        while True:
            for at, frame in enumerate(self._received):
                if (frame.kind is Kind.PIPES) is about_pipes:
                    return self._received.pop(at)
            self._received += map(frames.unpack, frames.split(next(self._call)))

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Return how the server ended the stream; nothing may come before."""
        try:
            received = list(self._call)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error.code(), error.details()
        raise AssertionError(f"the stream ended in order, after {received}")

    def close(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()


class Lab:
    """A server, its transport, and all who connect to it."""

    def __init__(
        self,
        nodes: Iterable[int],
        settings: StreamSettings,
        certificate: Certificate | None,
    ) -> None:
        self.settings = settings
        self.certificate = certificate
        self.server = StreamServer(settings, self.certificate)
        self.port = self.server.start()
        self.tokens = self.server.admit(nodes)
        self.transport = StreamTransport(self.server, settings.reconnect_timeout_s)
        self.closing: list[Callable[[], object]] = []

    def ticket(self, node: int, *, port: int = 0, roots: bytes = b"", host: str = "") -> Ticket:
        own = self.certificate
        return Ticket(
            address=f"{host or '127.0.0.1'}:{port or self.port}",
            session="a1b2",
            certificate=(roots or (own.roots if own else b"")).decode(),
            server_name=own.server_name if own else "",
            token=self.tokens[node],
            reconnect_timeout_s=self.settings.reconnect_timeout_s,
            max_frame_bytes=self.settings.max_frame_bytes,
        )

    def start(
        self, devices: Mapping[int, Device], *, port: int = 0, roots: bytes = b"", host: str = ""
    ) -> Serving:
        """Serve devices over one connection, in a thread."""
        ticket = self.ticket(next(iter(devices)), port=port, roots=roots, host=host)
        client = StreamClient(ticket)
        for node, device in devices.items():
            client.add(node, self.tokens[node], device)
        serving = Serving(client)
        self.closing.append(serving.error)
        return serving

    def serve(self, devices: Mapping[int, Device], *, port: int = 0, host: str = "") -> Serving:
        """Serve devices over one connection, in a thread; return when it is let in."""
        serving = self.start(devices, port=port, host=host)
        self.await_nodes(devices)
        return serving

    def await_nodes(self, nodes: Iterable[int]) -> None:
        while not set(nodes) <= set(self.transport.nodes()):
            assert self.transport.await_node(PATIENCE_S), "no node came"

    def proxy(self) -> "Proxy":
        """Return a proxy of the server, which lives as long."""
        proxy = Proxy(self.port)
        self.closing.insert(0, proxy.close)
        return proxy

    def raw(self, first: bytes | None, *, tls: bool = True) -> RawStream:
        """Open a stream with a first frame, or none, in its metadata."""
        address = f"127.0.0.1:{self.port}"
        if tls and self.certificate:
            options = [("grpc.ssl_target_name_override", SERVER_NAME)]
            root = grpc.ssl_channel_credentials(self.certificate.roots)
            channel = grpc.secure_channel(address, root, options)
        else:
            channel = grpc.insecure_channel(address)
        stream = RawStream(channel, first)
        self.closing.append(stream.close)
        return stream

    def raw_node(self, node: int) -> RawStream:
        """Return a raw stream that is let in as a node."""
        stream = self.raw(self.hello(node))
        assert stream.read().kind is Kind.WELCOME
        self.await_nodes([node])
        return stream

    def hello(self, node: int, token: str | None = None) -> bytes:
        given = self.tokens[node] if token is None else token
        return frames.pack(Kind.HELLO, node, 0, {"token": given})

    def requests(self, *nodes: int, phase: Phase = Phase.FORWARD) -> dict[int, StepRequest]:
        """Return a request a node, which share their weights."""
        weights = {"w": torch.rand(2)}
        return {
            node: StepRequest(
                phase=phase,
                id=StepId(
                    seed=0,
                    server_round=2,
                    plan=0,
                    step=40,
                    client_key=node % 1000,
                    start=0,
                    batch_size=3,
                ),
                weights=weights,
            )
            for node in nodes
        }

    def exchange(self, *nodes: int) -> dict[int, float]:
        """Return the node id that each device put into its activations."""
        replies = self.transport.exchange(self.requests(*nodes), PATIENCE_S).all()
        answers = {}
        for node, reply in replies.items():
            assert reply.activations is not None
            answers[node] = reply.activations[0, 0].item()
        return answers

    def close(self) -> None:
        self.server.goodbye()
        for close in reversed(self.closing):
            close()
        self.server.stop()


class Proxy:
    """Forwards TCP connections to a port, until it is told to drop them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._pairs.append((near, far))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    def drop(self, *, far: bool = True) -> list[socket.socket]:
        """Cut all connections; without `far`, the server is left in the dark.

        Returns
        -------
        list of socket
            The server's ends, for `close_all`.
        """
        with self._lock:  # who returns from here has no connection, whoever dropped it
            pairs, self._pairs = self._pairs, []
            close_all(near for near, _ in pairs)
            if far:
                close_all(server_end for _, server_end in pairs)
        return [server_end for _, server_end in pairs]

    def close(self) -> None:
        self._listener.close()
        self.drop()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return


def close_all(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # it is closed already
        finally:
            each.close()


MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    labs: list[Lab] = []

    own = make_certificate()

    def make(
        *nodes: int,
        reconnect_timeout_s: float = 5.0,
        max_frame_bytes: int = 10**6,
        certificate: Certificate | None = own,
        shared_memory: bool = True,
    ) -> Lab:
        settings = StreamSettings(
            reconnect_timeout_s=reconnect_timeout_s,
            max_frame_bytes=max_frame_bytes,
            shared_memory=shared_memory,
        )
        labs.append(Lab(nodes, settings, certificate))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture
def make_echo() -> type[Echo]:
    return Echo


@pytest.fixture
def make_serving() -> type[Serving]:
    return Serving
