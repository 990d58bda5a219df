"""Holding a live connection to the server, in the process that Flower gave us.

In a deployment a handler's process ends with the handler, so it stays until the session is
over. In a simulation a handler that stayed would keep an actor from the other clients;
there the actors live for the run, so a background thread serves all the clients that
Flower sent to this actor over one connection, and the handler returns at once.
"""

import logging
import math
import sys
import threading
import time

import torch

from flower_psl.client.client_cache import ClientCache
from flower_psl.client.split_client import SplitClient
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_ticket import Ticket
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest

_LOG = logging.getLogger("flwr.psl")

# How long a process that has its share of the nodes holds a message that it leaves to others.
_FULL_S = 0.1


class KeyedClient:
    """A client that knows its key, as a `Device` does, and the others of its process."""

    def __init__(self, client: SplitClient, client_key: int | None, cache: ClientCache) -> None:
        self._client = client
        self._client_key = client_key
        self._cache = cache

    def describe(self) -> DescribeReply:
        """Describe the client, its key included."""
        return self._client.describe(self._client_key)

    def handle(self, request: StepRequest) -> StepReply:
        """Answer a request."""
        if request.phase is Phase.FORWARD:
            self._cache.start_step(request.id[:4])
        return self._client.handle(request)

    def prepare(self, step: StepId) -> None:
        """Load a batch ahead."""
        self._client.prepare(step)


class BackgroundSession:
    """One thread a process, which serves every client that is given to it."""

    def __init__(self) -> None:
        self._stream: StreamClient | None = None
        self._session = ""
        self._nodes: set[int] = set()

    def has_room(self, node: int, ticket: Ticket) -> bool:
        """Tell whether a node is within this process's share of the run's nodes.

        Without room it answers after a moment, in which the other processes get the
        messages that wait.
        """
        if not ticket.num_nodes or node in self._nodes or self._open_stream(ticket) is None:
            return True
        if len(self._nodes) < math.ceil(ticket.num_nodes / num_actors()):
            return True
        time.sleep(_FULL_S)
        return False

    def add(self, node: int, ticket: Ticket, device: KeyedClient) -> None:
        """Serve one more client; a ticket of another run starts a new connection."""
        stream = self._open_stream(ticket)
        if stream is not None:
            self._nodes.add(node)
            stream.add(node, ticket.token, device)
            return
        self._stream = stream = StreamClient(ticket)
        self._session = ticket.session
        self._nodes = {node}
        stream.add(node, ticket.token, device)
        # A daemon, since nothing ends an actor in order: it dies with its process.
        threading.Thread(target=_serve, args=(stream,), daemon=True, name="psl-session").start()

    def _open_stream(self, ticket: Ticket) -> StreamClient | None:
        """Return the connection of this ticket's run, if there is one."""
        if self._stream is None or self._stream.done or ticket.session != self._session:
            return None
        return self._stream


def in_simulation() -> bool:
    """Tell whether this process is an actor of Flower's simulation.

    There is no public sign of it; an initialized Ray with an actor's id is as good.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_actor_id() is not None


def num_actors() -> int:
    """Return how many processes play a simulation's nodes; 1 if Ray cannot tell.

    They are as many as the cluster has room for, each with what this one takes.
    """
    ray = sys.modules["ray"]
    taken = ray.get_runtime_context().get_assigned_resources()
    if not taken:
        return 1
    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in taken.items())
        for node in ray.nodes()
    )


def _serve(stream: StreamClient) -> None:
    # What the process has set holds for a new thread's BLAS only once it is set there too;
    # until then that takes all cores, in every actor.
    torch.set_num_threads(torch.get_num_threads())
    try:
        stream.serve()
    except ConnectionError as error:
        _LOG.warning("%s", error)
