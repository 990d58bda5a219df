"""What the server knows of each stream, and of each node that may come over one."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from flower_psl.errors import ProtocolError
from flower_psl.wire.frames import Frame

# Frames that are to go at the same time are sent as one message while they are this short:
# a message costs a peer about as much as copying so many bytes.
_JOINED_BYTES = 262_144


class Request(NamedTuple):
    """A frame for one node that awaits an answer.

    Its weights, a frame of their own, are the same object for all requests that share
    them, so that they go over each connection once and not once a node.
    """

    sequence: int
    data: bytes
    weights: bytes | None = None


class Event(Enum):
    """What can happen to a node, other than that it answers."""

    CAME = "it connected"
    LOST = "its connection broke and did not come back in time"
    CAUGHT_UP = "it answered the last of what nobody waits for any more"


class Garbled(NamedTuple):
    """What came in place of an answer, and cannot be read."""

    sequence: int
    error: ProtocolError


class Arrival(NamedTuple):
    """An answer to the outstanding request of a node, or something else that happened to it."""

    node: int
    event: Frame | Garbled | Event


@dataclass(eq=False)
class Connection:
    """One stream. It may serve several nodes."""

    nodes: set[int] = field(default_factory=set)
    weights: bytes | None = None
    _outgoing: deque[bytes] = field(default_factory=deque)
    _waiting: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, frame: bytes) -> None:
        """Send a frame after those that were sent before."""
        self._outgoing.append(frame)
        self._waiting.set()

    def ask(self, request: Request) -> None:
        """Send a request, after its weights if they are not there yet."""
        if request.weights is not None and request.weights is not self.weights:
            self.weights = request.weights
            self.send(request.weights)
        self.send(request.data)

    async def write(self, context: Any) -> None:
        """Write frames as fast as the peer takes them."""
        while True:
            await self._waiting.wait()
            while self._outgoing:
                await context.write(self._next_message())
            self._waiting.clear()

    def _next_message(self) -> bytes:
        frames = [self._outgoing.popleft()]
        length = len(frames[0])
        while self._outgoing and length + len(self._outgoing[0]) <= _JOINED_BYTES:
            frames.append(self._outgoing.popleft())
            length += len(frames[-1])
        return b"".join(frames) if len(frames) > 1 else frames[0]


@dataclass
class Node:
    """One node, connected or not."""

    token: str
    connection: Connection | None = None
    # The request that it has not answered yet. It is sent again when the node comes back.
    outstanding: Request | None = None
    # Requests that nobody waits for any more: an answer to one of them is late, not forged.
    given_up: set[int] = field(default_factory=set)
    # When it will be lost, if it is away; and whether it is, or has never come.
    deadline: asyncio.TimerHandle | None = None
    is_absent: bool = True

    def ask(self, request: Request) -> None:
        """Send it a request, now or when it is back."""
        self.give_up()
        self.outstanding = request
        if self.connection is not None:
            self.connection.ask(request)

    def settle(self, sequence: int) -> bool:
        """Take an answer for that of the outstanding request, if it is, and tell whether."""
        if self.outstanding is None or self.outstanding.sequence != sequence:
            return False
        self.outstanding = None
        return True

    def give_up(self) -> None:
        """Wait no more for what it has not answered."""
        if self.outstanding is not None:
            self.given_up.add(self.outstanding.sequence)
            self.outstanding = None
