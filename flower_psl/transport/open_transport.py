"""Which transport a run gets: live connections where they can be had, else messages."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_psl.errors import WaitError
from flower_psl.transport.flower_messages import FlowerMessageTransport
from flower_psl.transport.polling import poll_delays, wait_for_nodes
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_ticket import SESSION, TICKET, StreamSettings, Ticket
from flower_psl.transport.stream_tls import Certificate, make_certificate
from flower_psl.transport.transport import Transport

_LOG = logging.getLogger("flwr.psl")

TransportName = Literal["auto", "stream", "messages"]

# A held session message is answered when the run ends, which may take days.
_SESSION_TTL_S = 30 * 24 * 3600.0
_CLOSING_TIMEOUT_S = 30.0


@contextmanager
def open_transport(
    grid: Grid,
    name: TransportName,
    settings: StreamSettings,
    *,
    min_nodes: int,
    node_timeout_s: float,
) -> Iterator[Transport]:
    """Open the transport of a run, and close it with the block.

    Parameters
    ----------
    grid : Grid
        The grid of a running ServerApp.
    name : {"auto", "stream", "messages"}
        ``"auto"`` tries the stream, and says why if it goes on with messages.
    settings : StreamSettings
        Where to listen for live connections, and how long to wait for them.
    min_nodes : int
        Nodes to wait for.
    node_timeout_s : float
        Bound on that wait, in seconds.

    Raises
    ------
    WaitError
        If too few nodes come, or, with ``"stream"``, one does not connect.
    """
    messages = FlowerMessageTransport(grid)
    if name == "messages":
        yield messages
        return
    nodes = wait_for_nodes(messages, min_nodes, node_timeout_s)
    certificate = make_certificate()
    server = StreamServer(settings, certificate)
    port = server.start()
    sessions = _Sessions(grid)
    try:
        stream = StreamTransport(server, settings.reconnect_timeout_s)
        tokens = server.admit(nodes)
        sessions.open(_tickets(settings, certificate, port, tokens))
        problem = _await_connections(stream, sessions, nodes, settings.connect_timeout_s)
        if not problem:
            yield stream
            return
        if name == "stream":
            raise WaitError(problem)
    finally:
        server.goodbye()
        try:
            sessions.await_ends(_CLOSING_TIMEOUT_S)
        finally:
            server.stop()
    _LOG.warning("%s The run goes on with Flower messages.", problem)
    yield messages


class _Sessions:
    """The session messages of a run: one a node, answered when its session ends.

    In a simulation a node answers at once, and serves on from a thread.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: dict[str, int] = {}
        self.failures: dict[int, str] = {}

    def open(self, tickets: Mapping[int, Ticket]) -> None:
        """Send each node its ticket."""
        messages = [
            Message(
                RecordDict({TICKET: ConfigRecord({**ticket.to_values()})}),
                node,
                SESSION,
                ttl=_SESSION_TTL_S,
            )
            for node, ticket in tickets.items()
        ]
        identifiers = list(self._grid.push_messages(messages))
        # Flower answers with None, or with nothing, where it does not take a message.
        taken = dict(zip(tickets, identifiers, strict=False))
        self._nodes = {taken[node]: node for node in tickets if taken.get(node) is not None}
        self.failures = {
            node: "the SuperLink did not take its session message"
            for node in tickets
            if taken.get(node) is None
        }

    def look(self) -> None:
        """Take the answers that are there; keep the reasons of those that failed."""
        if not self._nodes:
            return
        for answer in self._grid.pull_messages(list(self._nodes)):
            node = self._nodes.pop(answer.metadata.reply_to_message_id, None)
            if node is not None and answer.has_error():
                self.failures[node] = str(answer.error.reason).strip()

    def await_ends(self, timeout_s: float) -> None:
        """Wait until every node has answered, so that it is free for other messages."""
        deadline = time.monotonic() + timeout_s
        delays = poll_delays()
        self.look()
        while self._nodes and time.monotonic() < deadline:
            time.sleep(next(delays))
            self.look()
        if self._nodes:
            _LOG.warning(
                "nodes %s have not ended their sessions within %g s; they will when they notice "
                "that the server is gone",
                sorted(self._nodes.values()),
                timeout_s,
            )


def _tickets(
    settings: StreamSettings, certificate: Certificate, port: int, tokens: Mapping[int, str]
) -> dict[int, Ticket]:
    host, _, advertised = (settings.advertise or settings.address).rpartition(":")
    address = f"{host}:{advertised if int(advertised) else port}"
    return {
        node: Ticket(
            address=address,
            certificate=certificate.certificate.decode(),
            token=token,
            reconnect_timeout_s=float(settings.reconnect_timeout_s),
            max_frame_bytes=settings.max_frame_bytes,
        )
        for node, token in tokens.items()
    }


def _await_connections(
    stream: StreamTransport, sessions: _Sessions, nodes: list[int], timeout_s: float
) -> str:
    """Wait for all nodes to connect; return why not, or an empty string."""
    deadline = time.monotonic() + timeout_s
    delays = poll_delays()
    while missing := [node for node in nodes if node not in stream.nodes()]:
        sessions.look()
        if sessions.failures:
            node, reason = next(iter(sessions.failures.items()))
            return f"node {node} opened no stream: {reason}."
        if time.monotonic() >= deadline:
            return (
                f"{len(missing)} of {len(nodes)} nodes opened no stream within {timeout_s:g} s "
                f"({missing[:3]}{', ...' if len(missing) > 3 else ''}); they must be able to "
                "reach the server. Set the stream's address, or advertise the one they see."
            )
        stream.await_node(next(delays))
    return ""
