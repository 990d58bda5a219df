"""Requests over live connections: milliseconds a step instead of Flower's polling."""

import logging
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import TypeVar

from flower_psl.errors import ClientError, ProtocolError, PslError
from flower_psl.transport.answers import Answers
from flower_psl.transport.polling import late
from flower_psl.transport.shared_memory import SharedMemory, pack_with, tensors_of
from flower_psl.transport.stream_connection import Arrival, Event, Garbled, Request
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.transport import ignore_reply
from flower_psl.wire import (
    DescribeReply,
    StepId,
    StepReply,
    StepRequest,
    check_belongs,
    frames,
    parts,
)
from flower_psl.wire.frames import AHEAD, SHARED, Frame, Kind
from flower_psl.wire.tensor_table import pack_tensors

_LOG = logging.getLogger("flwr.psl")

T = TypeVar("T")


class StreamTransport:
    """Sends frames to connected nodes and takes their answers as they come.

    Parameters
    ----------
    server : StreamServer
        A server that listens.
    reconnect_timeout_s : float
        How long a lost node was waited for, for messages.
    """

    name = "stream"

    def __init__(self, server: StreamServer, reconnect_timeout_s: float) -> None:
        self._server = server
        self._reconnect_timeout_s = reconnect_timeout_s
        self._sequence = count(1)
        self._nodes: set[int] = set()
        self._lost: set[int] = set()
        self._late: set[int] = set()
        self._ahead: Mapping[int, StepId] = {}
        self._memories: dict[int, SharedMemory] = {}

    @property
    def refused(self) -> dict[str, int]:
        """Streams and frames that were refused so far, by reason."""
        return dict(self._server.refused)

    def nodes(self) -> list[int]:
        """Return the nodes that are not lost and have answered what they were asked."""
        while self.await_node(0.0):
            pass
        return sorted(self._nodes - self._lost - self._late)

    def await_node(self, timeout_s: float) -> bool:
        """Wait for one thing to happen to a node, and say whether anything did."""
        try:
            self._note(self._server.arrivals.get(timeout=timeout_s))
        except queue.Empty:
            return False
        return True

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        """Ask each node for its description."""
        sequence = next(self._sequence)
        requests = {
            node: Request(sequence, frames.pack(Kind.DESCRIBE, node, sequence, {}))
            for node in nodes
        }
        answers = self._converse(
            sequence, [requests], _describing, _description, timeout_s, ignore_reply
        )
        if self._memories:
            _LOG.info(
                "long tensors of %d of %d nodes go through memory of this machine",
                len(self._memories),
                len(self._nodes),
            )
        return answers

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        """Send each node its request and wait for its reply."""
        return self.exchange_in_portions([requests], timeout_s, ignore_reply)

    def exchange_in_portions(
        self,
        portions: Iterable[Mapping[int, StepRequest]],
        timeout_s: float,
        on_reply: Callable[[StepReply], None],
    ) -> Answers[StepReply]:
        """Send each portion of the requests when it is made; see `OverlappingTransport`."""
        sequence = next(self._sequence)
        asked: dict[int, StepRequest] = {}
        ahead, self._ahead = self._ahead, {}
        started = time.monotonic()

        def contents() -> Iterator[Mapping[int, Request]]:
            for portion in portions:
                asked.update(portion)
                yield _requests(sequence, portion, ahead, self._memories)

        def where(node: int) -> str:
            return f"node {node}, {asked[node].id}"

        def decode(frame: Frame) -> StepReply | PslError:
            tensors = tensors_of(frame, self._memories.get(frame.node))
            reply = parts.reply_of(frame.values, tensors, time.monotonic() - started)
            try:
                check_belongs(reply, asked[frame.node])
            except ProtocolError as error:
                return error  # names the step already
            return reply

        return self._converse(sequence, contents(), where, decode, timeout_s, on_reply)

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Tell nodes, with the requests of the next exchange, what comes after it.

        They load it when they have answered: a node that shares its process with others, when
        those that were asked with it have answered too.
        """
        self._ahead = steps

    def _converse(
        self,
        sequence: int,
        contents: Iterable[Mapping[int, Request]],
        where: Callable[[int], str],
        decode: Callable[[Frame], T | PslError],
        timeout_s: float,
        on_reply: Callable[[T], None],
    ) -> Answers[T]:
        """Send one frame a node, await one answer a node, decode as they arrive."""
        deadline = time.monotonic() + timeout_s
        outcomes: dict[int, T | PslError] = {}
        asked: list[int] = []
        pending: set[int] = set()
        for portion in contents:
            asked += portion
            lost = self._lost.intersection(portion)
            outcomes |= {node: self._loss(where(node)) for node in lost}
            there = {node: request for node, request in portion.items() if node not in lost}
            self._server.send(there)
            pending |= there.keys()
        while pending:
            try:
                arrival = self._server.arrivals.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                break
            self._note(arrival)
            node, event = arrival
            if node not in pending:
                continue
            if event is Event.LOST:
                outcomes[node] = self._loss(where(node))
            elif isinstance(event, Frame | Garbled) and event.sequence == sequence:
                outcome = outcomes[node] = _decoded(node, event, where, decode)
                if not isinstance(outcome, PslError):
                    on_reply(outcome)
            else:
                continue
            pending.discard(node)
        if unanswered := pending.union(self._lost.intersection(asked)):
            self._server.give_up(unanswered)
        self._late |= pending
        outcomes |= {node: late(where(node), timeout_s) for node in pending}
        return Answers.of(asked, outcomes)

    def _note(self, arrival: Arrival) -> None:
        """Keep count of who is there."""
        node, event = arrival
        if event is Event.LOST:
            self._lost.add(node)
            self._memories.pop(node, None)
            return
        if isinstance(event, SharedMemory):
            self._memories[node] = event
            return
        self._late.discard(node)
        if event is Event.CAME:
            self._nodes.add(node)
            self._lost.discard(node)
            self._memories.pop(node, None)  # that of the connection before
        elif isinstance(event, Frame | Garbled) and node in self._memories:
            self._memories[node].free(event.sequence)

    def _loss(self, where: str) -> ClientError:
        return ClientError(
            f"{where}: its connection broke and did not come back within "
            f"{self._reconnect_timeout_s:g} s. Look at the node's log, or raise "
            "reconnect_timeout_s if the network is away for longer."
        )


def _requests(
    sequence: int,
    steps: Mapping[int, StepRequest],
    ahead: Mapping[int, StepId],
    memories: Mapping[int, SharedMemory],
) -> dict[int, Request]:
    """Return the frames of some requests of one exchange."""
    # Clients share the step's weights, so their frame is made once and not per client.
    weights: dict[int, bytes] = {}
    for request in steps.values():
        if request.weights and id(request.weights) not in weights:
            tensors = pack_tensors(request.weights)
            weights[id(request.weights)] = frames.pack(Kind.WEIGHTS, 0, sequence, {}, tensors)
    return {
        node: Request(
            sequence,
            _packed(node, sequence, step, ahead.get(node), memories.get(node)),
            weights.get(id(step.weights)),
            memories.get(node),
        )
        for node, step in steps.items()
    }


def _packed(
    node: int,
    sequence: int,
    request: StepRequest,
    ahead: StepId | None,
    memory: SharedMemory | None,
) -> bytes:
    values = {**parts.request_config(request), SHARED: bool(request.weights)}
    if ahead is not None:
        values[AHEAD] = list(ahead)
    tensors = pack_tensors(parts.request_tensors(request))
    return pack_with(memory, Kind.REQUEST, node, sequence, values, tensors)


def _decoded(
    node: int,
    answer: Frame | Garbled,
    where: Callable[[int], str],
    decode: Callable[[Frame], T | PslError],
) -> T | PslError:
    """Return a node's answer, or what is wrong with it."""
    try:
        if isinstance(answer, Garbled):
            raise answer.error
        if answer.kind is Kind.ERROR:
            return ClientError(f"{where(node)}: the client raised {answer.values.get('reason')}")
        return decode(answer)
    except ProtocolError as error:
        failure = ProtocolError(f"{where(node)}: {error}")
        failure.__cause__ = error
        return failure


def _description(frame: Frame) -> DescribeReply:
    return parts.description_of(frame.values)


def _describing(node: int) -> str:
    return f"node {node}, describing itself"
