"""Which transport a run gets: live connections where they can be had, else messages."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

from flwr.serverapp import Grid

from flower_psl.errors import WaitError
from flower_psl.transport.flower_messages import FlowerMessageTransport
from flower_psl.transport.flower_sessions import FlowerSessions
from flower_psl.transport.polling import wait_for_nodes
from flower_psl.transport.session_keeper import SessionKeeper
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.transport.stream_ticket import Ticket
from flower_psl.transport.stream_tls import Certificate, make_certificate, read_certificate
from flower_psl.transport.transport import Transport

_LOG = logging.getLogger("flwr.psl")

TransportName = Literal["auto", "stream", "messages"]

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
        ``"stream"`` goes on with `min_nodes` that connect; ``"auto"`` wants all that are there,
        and says why if it goes on with messages.
    settings : StreamSettings
        Where to listen for live connections, and how long to wait for them.
    min_nodes : int
        Nodes to wait for.
    node_timeout_s : float
        Bound on that wait, in seconds.

    Raises
    ------
    WaitError
        If too few nodes come, or, with ``"stream"``, connect.
    ConfigError
        If the settings' files or address cannot be used.
    """
    messages = FlowerMessageTransport(grid)
    if name == "messages":
        yield messages
        return
    certificate = _certificate(settings)
    nodes = wait_for_nodes(messages, min_nodes, node_timeout_s)
    server = StreamServer(settings, certificate)
    tokens = server.admit(nodes)
    port = server.start()
    tickets = partial(_tickets, settings, certificate, port, secrets.token_hex(8))
    sessions = FlowerSessions(grid, tickets(tokens), lambda new: tickets(server.admit(new)))
    stream = StreamTransport(server, settings.reconnect_timeout_s)
    opened = False
    try:
        enough = min_nodes if name == "stream" else None
        problem = sessions.open(stream, settings.connect_timeout_s, enough)
        if opened := not problem:
            with SessionKeeper(server, sessions):
                yield stream
            return
        if name == "stream":
            raise WaitError(problem)
    finally:
        server.goodbye()
        try:
            # Once the stream is open, the run waits for nobody who has not come.
            sessions.await_ends(_CLOSING_TIMEOUT_S, server.absent() if opened else ())
        finally:
            server.stop()
            _log_refused(stream.refused)
    _LOG.warning("%s The run goes on with Flower messages.", problem)
    yield messages


def _certificate(settings: StreamSettings) -> Certificate | None:
    if settings.plain_text:
        return None
    if not settings.certificate_file:
        return make_certificate()
    return read_certificate(
        settings.certificate_file, settings.key_file, settings.root_certificates_file
    )


def _log_refused(refused: Mapping[str, int]) -> None:
    if refused:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(refused.items()))
        _LOG.warning("refused on the stream: %s", reasons)


def _tickets(
    settings: StreamSettings,
    certificate: Certificate | None,
    port: int,
    session: str,
    tokens: Mapping[int, str],
) -> dict[int, Ticket]:
    host, _, advertised = (settings.advertise or settings.address).rpartition(":")
    address = f"{host}:{advertised if int(advertised) else port}"
    return {
        node: Ticket(
            address=address,
            session=session,
            certificate=certificate.roots.decode() if certificate else "",
            server_name=certificate.server_name if certificate else "",
            token=token,
            reconnect_timeout_s=float(settings.reconnect_timeout_s),
            max_frame_bytes=settings.max_frame_bytes,
            num_nodes=len(tokens),
        )
        for node, token in tokens.items()
    }
