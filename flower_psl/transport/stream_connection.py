"""What the server knows of each stream, and of each node that may come over one."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Request(NamedTuple):
    """A frame for one node that awaits an answer.

    Its weights, a frame of their own, are the same object for all requests that share
    them, so that they go over each connection once and not once a node.
    """

    sequence: int
    data: bytes
    weights: bytes | None = None


@dataclass(eq=False)
class Connection:
    """One stream. It may serve several nodes."""

    outgoing: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    nodes: set[int] = field(default_factory=set)
    weights: bytes | None = None

    def ask(self, request: Request) -> None:
        """Send a request, after its weights if they are not there yet."""
        if request.weights is not None and request.weights is not self.weights:
            self.weights = request.weights
            self.outgoing.put_nowait(request.weights)
        self.outgoing.put_nowait(request.data)

    async def write(self, context: Any) -> None:
        """Write frames as fast as the peer takes them."""
        while True:
            await context.write(await self.outgoing.get())


@dataclass
class Node:
    """One node, connected or not."""

    token: str
    connection: Connection | None = None
    # The request that it has not answered yet. It is sent again when the node comes back.
    outstanding: Request | None = None
    # Requests that nobody waits for any more: an answer to one of them is late, not forged.
    given_up: set[int] = field(default_factory=set)
    deadline: asyncio.TimerHandle | None = None

    def ask(self, request: Request) -> None:
        """Send it a request, now or when it is back."""
        if self.outstanding is not None:
            self.given_up.add(self.outstanding.sequence)
        self.outstanding = request
        if self.connection is not None:
            self.connection.ask(request)
