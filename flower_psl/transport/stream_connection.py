"""What the server knows of each stream, and of each node that may come over one."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from flower_psl.errors import ProtocolError
from flower_psl.transport.local_pipes import LocalPipes, OfferedPipes
from flower_psl.transport.shared_memory import MemoryOffer, SharedMemory
from flower_psl.wire import frames
from flower_psl.wire.frames import Frame, Kind

_LOG = logging.getLogger("flwr.psl")

# Frames that are to go at the same time are sent as one message while they are this short:
# a message costs a peer about as much as copying so many bytes.
_JOINED_BYTES = 262_144


class Request(NamedTuple):
    """A frame for one node that awaits an answer.

    Its weights, a frame of their own, are the same object for all requests that share
    them, so that they go over each connection once and not once a node. Its tensors may be in
    a memory that the node shares.
    """

    sequence: int
    data: bytes
    weights: bytes | None = None
    memory: SharedMemory | None = None

    def without_memory(self) -> "Request":
        """Return the request with its tensors in the frame."""
        frame = frames.unpack(self.data)
        if self.memory is None or not frame.in_memory_bytes:
            return self
        tensors = [self.memory.sent(frame.in_memory_bytes)]
        data = frames.pack(frame.kind, frame.node, frame.sequence, frame.values, tensors)
        return Request(self.sequence, data, self.weights)


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
    event: Frame | Garbled | Event | SharedMemory


@dataclass(eq=False)
class Connection:
    """One stream, from this machine's loopback or not. It may serve several nodes.

    Once the other side has opened the pipes that it was offered, all that is sent goes there.
    """

    is_local: bool = False
    nodes: set[int] = field(default_factory=set)
    weights: bytes | None = None
    offer: OfferedPipes | None = None
    _pipes: LocalPipes | None = None
    _outgoing: deque[bytes] = field(default_factory=deque)
    _waiting: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        if self._pipes is not None:
            self._pipes.write(frame)
            return
        self._outgoing.append(frame)
        self._waiting.set()

    @property
    def may_use_pipes(self) -> bool:
        """Whether it has pipes that the other side has opened, or may open."""
        return self.offer is not None or self._pipes is not None

    async def offer_pipes(self, node: int, pipes: LocalPipes) -> None:
        """Offer pipes to the process at the other end, by a frame to one of its nodes."""
        self.offer = OfferedPipes(pipes)
        try:
            values = await self.offer.open()
        except OSError as error:
            _LOG.debug("no pipes to offer: %s", error)
            self.take_offer(is_open=False)
        else:
            self.send(frames.pack(Kind.PIPES, node, 0, values))

    def take_offer(self, is_open: bool) -> None:
        """Use the pipes that were offered, if the other side has opened them."""
        if self.offer is None:
            return
        self.offer.withdraw()
        if is_open:
            self.send(frames.pack(Kind.PIPES, 0, 0, {}))  # the last over the stream
            self._pipes = self.offer.pipes
            self._pipes.read()
        else:
            self.offer.pipes.close()
        self.offer = None

    def close(self) -> None:
        """Close the pipes, opened or not."""
        self.take_offer(is_open=False)
        if self._pipes is not None:
            self._pipes.close()

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
        joined = [self._outgoing.popleft()]
        length = len(joined[0])
        while self._outgoing and length + len(self._outgoing[0]) <= _JOINED_BYTES:
            joined.append(self._outgoing.popleft())
            length += len(joined[-1])
        return b"".join(joined) if len(joined) > 1 else joined[0]


@dataclass
class Node:
    """One node, connected or not."""

    token: str
    connection: Connection | None = None
    # The memory that its connection comes with: offered, and then opened.
    offer: MemoryOffer | None = None
    memory: SharedMemory | None = None
    num_offers: int = 0
    # The request that it has not answered yet. It is sent again when the node comes back.
    outstanding: Request | None = None
    # Requests that nobody waits for any more: an answer to one of them is late, not forged.
    given_up: set[int] = field(default_factory=set)
    # When it will be lost, if it is away; and whether it is, or has never come.
    deadline: asyncio.TimerHandle | None = None
    is_absent: bool = True

    def come(self, connection: Connection) -> None:
        """Use a connection, and nothing of the one before."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        self.is_absent = False
        self.connection = connection
        self.given_up.clear()  # a connection carries answers to its own requests only

    def go(self) -> None:
        """Forget a connection that has ended, and the memory that came with it."""
        self.connection = self.offer = self.memory = None

    @property
    def offered_or_shared(self) -> SharedMemory | None:
        """The memory of its connection, opened or not."""
        return self.memory if self.offer is None else self.offer.memory

    def take_offer(self, is_open: bool) -> SharedMemory | None:
        """Return the memory that the node was offered, if it has opened that."""
        if self.offer is not None and is_open:
            self.memory = self.offer.memory
        self.offer = None
        return self.memory

    def ask(self, request: Request) -> None:
        """Send it a request, now or when it is back."""
        self.give_up()
        self.outstanding = request
        self.ask_again()

    def ask_again(self) -> None:
        """Send it the outstanding request, if it is there to get it."""
        if self.outstanding is None or self.connection is None:
            return
        if self.outstanding.memory not in (None, self.memory):  # an earlier connection's
            self.outstanding = self.outstanding.without_memory()
        self.connection.ask(self.outstanding)

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
