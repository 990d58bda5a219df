"""Requests over live connections: milliseconds a step instead of Flower's polling."""

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import TypeVar

from flower_psl.errors import ClientError, ProtocolError
from flower_psl.transport.polling import late
from flower_psl.transport.stream_connection import Request
from flower_psl.transport.stream_server import Arrival, StreamServer
from flower_psl.wire import (
    DescribeReply,
    StepId,
    StepReply,
    StepRequest,
    check_belongs,
    frames,
    parts,
)
from flower_psl.wire.frames import SHARED, Frame, Kind
from flower_psl.wire.tensor_table import pack_tensors, unpack_tensors

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
        self._notes: dict[int, bytes] = {}

    @property
    def refused(self) -> dict[str, int]:
        """Streams and frames that were refused so far, by reason."""
        return dict(self._server.refused)

    def nodes(self) -> list[int]:
        """Return the nodes that connected and are not lost."""
        return sorted(self._nodes - self._lost)

    def await_node(self, timeout_s: float) -> bool:
        """Wait for one thing to happen to a node, and say whether anything did."""
        try:
            self._note(self._server.arrivals.get(timeout=max(timeout_s, 0.0)))
        except queue.Empty:
            return False
        return True

    def describe(self, nodes: Iterable[int], timeout_s: float) -> dict[int, DescribeReply]:
        """Ask each node for its description."""
        where = {node: f"node {node}, describing itself" for node in nodes}
        sequence = next(self._sequence)
        requests = {
            node: Request(sequence, frames.pack(Kind.DESCRIBE, node, sequence, {}))
            for node in where
        }
        return self._converse(sequence, requests, where, _description, timeout_s)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> dict[int, StepReply]:
        """Send each node its request and return all replies."""
        sequence = next(self._sequence)
        # Clients share the step's weights, so their frame is made once and not per client.
        weights: dict[int, bytes] = {}
        for request in requests.values():
            if request.weights and id(request.weights) not in weights:
                tensors = pack_tensors(request.weights)
                weights[id(request.weights)] = frames.pack(Kind.WEIGHTS, 0, sequence, {}, tensors)
        contents = {
            node: Request(
                sequence, _packed(node, sequence, request), weights.get(id(request.weights))
            )
            for node, request in requests.items()
        }
        where = {node: f"node {node}, {request.id}" for node, request in requests.items()}
        started = time.monotonic()

        def decode(frame: Frame) -> StepReply:
            return replace(_reply(frame), exchange_s=time.monotonic() - started)

        replies = self._converse(sequence, contents, where, decode, timeout_s)
        for node, reply in replies.items():
            check_belongs(reply, requests[node])
        return replies

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Tell nodes, behind the requests of the next exchange, what comes after it.

        They load it when they have answered: a node that shares its process with others, when
        these have answered too.
        """
        self._notes = {
            node: frames.pack(Kind.AHEAD, node, 0, parts.step_config(step))
            for node, step in steps.items()
        }

    def _converse(
        self,
        sequence: int,
        contents: Mapping[int, Request],
        where: Mapping[int, str],
        decode: Callable[[Frame], T],
        timeout_s: float,
    ) -> dict[int, T]:
        """Send one frame a node, await one answer a node, decode as they arrive."""
        deadline = time.monotonic() + timeout_s
        pending = set(contents)
        self._refuse_lost(pending, where)
        notes, self._notes = self._notes, {}
        self._server.send(contents, notes)
        replies: dict[int, T] = {}
        while pending:
            try:
                arrival = self._server.arrivals.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise late([where[node] for node in sorted(pending)], timeout_s) from None
            self._note(arrival)
            self._refuse_lost(pending, where)
            node, frame = arrival
            if frame is None or frame.kind is Kind.HELLO or frame.sequence != sequence:
                continue
            pending.discard(node)
            if frame.kind is Kind.ERROR:
                reason = str(frame.values.get("reason"))
                raise ClientError(f"{where[node]}: the client raised {reason}")
            try:
                replies[node] = decode(frame)
            except ProtocolError as error:
                raise ProtocolError(f"{where[node]}: {error}") from error
        return {node: replies[node] for node in contents}

    def _note(self, arrival: Arrival) -> None:
        """Keep count of who is there."""
        if arrival.frame is None:
            self._lost.add(arrival.node)
        elif arrival.frame.kind is Kind.HELLO:
            self._nodes.add(arrival.node)
            self._lost.discard(arrival.node)

    def _refuse_lost(self, pending: set[int], where: Mapping[int, str]) -> None:
        if lost := sorted(pending & self._lost):
            raise ClientError(
                f"{where[lost[0]]}: its connection broke and did not come back within "
                f"{self._reconnect_timeout_s:g} s. Look at the node's log, or raise "
                "reconnect_timeout_s if the network is away for longer."
            )


def _packed(node: int, sequence: int, request: StepRequest) -> bytes:
    values = {**parts.request_config(request), SHARED: bool(request.weights)}
    tensors = pack_tensors(parts.request_tensors(request))
    return frames.pack(Kind.REQUEST, node, sequence, values, tensors)


def _description(frame: Frame) -> DescribeReply:
    return parts.description_of(frame.values)


def _reply(frame: Frame) -> StepReply:
    return parts.reply_of(frame.values, unpack_tensors(frame.tensors))
