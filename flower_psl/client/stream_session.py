"""Holding a live connection to the server, in the process that Flower gave us.

In a deployment a handler's process ends with the handler, so it stays until the session is
over. In a simulation a handler that stayed would keep an actor from the other clients;
there the actors live for the run, so a background thread serves all the clients that
Flower sent to this actor over one connection, and the handler returns at once.
"""

import logging
import sys
import threading

from flower_psl.client.split_client import SplitClient
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_ticket import Ticket
from flower_psl.wire import DescribeReply, StepReply, StepRequest

_LOG = logging.getLogger("flwr.psl")


class KeyedClient:
    """A client that knows its key, as a `Device` does."""

    def __init__(self, client: SplitClient, client_key: int | None) -> None:
        self._client = client
        self._client_key = client_key

    def describe(self) -> DescribeReply:
        """Describe the client, its key included."""
        return self._client.describe(self._client_key)

    def handle(self, request: StepRequest) -> StepReply:
        """Answer a request."""
        return self._client.handle(request)


class BackgroundSession:
    """One thread a process, which serves every client that is given to it."""

    def __init__(self) -> None:
        self._stream: StreamClient | None = None
        self._certificate = ""

    def add(self, node: int, ticket: Ticket, device: KeyedClient) -> None:
        """Serve one more client; a ticket of another run starts a new connection."""
        stream = self._stream
        if stream is None or stream.done or ticket.certificate != self._certificate:
            stream = self._stream = StreamClient(ticket)
            self._certificate = ticket.certificate
            stream.add(node, ticket.token, device)
            # A daemon, since nothing ends an actor in order: it dies with its process.
            threading.Thread(
                target=_serve, args=(stream,), daemon=True, name="psl-session"
            ).start()
        else:
            stream.add(node, ticket.token, device)


def in_simulation() -> bool:
    """Tell whether this process is an actor of Flower's simulation.

    There is no public sign of it; an initialized Ray with an actor's id is as good.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_actor_id() is not None


def _serve(stream: StreamClient) -> None:
    try:
        stream.serve()
    except ConnectionError as error:
        _LOG.warning("%s", error)
