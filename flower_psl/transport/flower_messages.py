"""Requests as Flower messages over a Grid."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_psl.errors import ClientError, ProtocolError
from flower_psl.transport.polling import late, poll_delays
from flower_psl.wire import (
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_belongs,
    records,
)

DESCRIBE = "query.psl_describe"
STEP = "train.psl_step"
EVALUATE = "evaluate.psl_step"

# What a message may outlive our own bound by: with less, Flower would drop a reply in the
# instant in which we still accept it.
_TTL_MARGIN_S = 60.0

T = TypeVar("T")


class FlowerMessageTransport:
    """Sends Flower messages and polls for the replies.

    Parameters
    ----------
    grid : Grid
        The grid of a running ServerApp.
    """

    name = "messages"

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def refused(self) -> dict[str, int]:
        """Nothing: Flower knows who sends a message."""
        return {}

    def nodes(self) -> list[int]:
        """Return the ids of the connected nodes."""
        return sorted(self._grid.get_node_ids())

    def describe(self, nodes: Iterable[int], timeout_s: float) -> dict[int, DescribeReply]:
        """Ask each node for its description."""
        where = {node: f"node {node}, describing itself" for node in nodes}
        messages = {node: (DESCRIBE, RecordDict()) for node in where}
        return self._converse(messages, where, records.decode_description, timeout_s)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> dict[int, StepReply]:
        """Send each node its request and return all replies."""
        # Clients share the step's weights, so they are encoded once and not per client.
        encoded: dict[int, ArrayRecord] = {}
        messages = {}
        for node, request in requests.items():
            identity = id(request.weights)
            if identity not in encoded:
                encoded[identity] = records.encode_tensors(request.weights)
            messages[node] = (
                EVALUATE if request.phase is Phase.EVALUATE else STEP,
                records.encode_request(request, encoded[identity]),
            )
        where = {node: f"node {node}, {request.id}" for node, request in requests.items()}
        started = time.monotonic()

        def decode(content: RecordDict) -> StepReply:
            return replace(records.decode_reply(content), exchange_s=time.monotonic() - started)

        replies = self._converse(messages, where, decode, timeout_s)
        for node, reply in replies.items():
            check_belongs(reply, requests[node])
        return replies

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Do nothing: a message costs a node far more than loading a batch."""

    def _converse(
        self,
        contents: Mapping[int, tuple[str, RecordDict]],
        where: Mapping[int, str],
        decode: Callable[[RecordDict], T],
        timeout_s: float,
    ) -> dict[int, T]:
        """Send one message a node, await one reply a node, decode as they arrive."""
        deadline = time.monotonic() + timeout_s
        pending = self._push(contents, timeout_s + _TTL_MARGIN_S)
        replies: dict[int, T] = {}
        delays = poll_delays()
        while pending:
            for message in self._grid.pull_messages(list(pending)):
                node = pending.pop(message.metadata.reply_to_message_id, None)
                if node is None:
                    continue  # a reply that came twice
                if message.has_error():
                    raise ClientError(f"{where[node]}: {_reason(message)}")
                try:
                    replies[node] = decode(message.content)
                except ProtocolError as error:
                    raise ProtocolError(f"{where[node]}: {error}") from error
            if not pending:
                break
            if time.monotonic() >= deadline:
                raise late([where[node] for node in pending.values()], timeout_s)
            time.sleep(next(delays))
        return {node: replies[node] for node in contents}

    def _push(
        self, contents: Mapping[int, tuple[str, RecordDict]], ttl_s: float
    ) -> dict[str, int]:
        messages = [
            Message(content, node, message_type, ttl=ttl_s)
            for node, (message_type, content) in contents.items()
        ]
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(messages) or None in ids:
            sent = sum(identifier is not None for identifier in ids)
            raise ClientError(
                f"the SuperLink took {sent} of {len(messages)} messages, for nodes "
                f"{list(contents)}; a node may have left, or the message is too large. Look at "
                "the SuperLink's log."
            )
        return dict(zip(ids, contents, strict=True))


def _reason(message: Message) -> str:
    reason = (message.error.reason or "no reason given").strip()
    return f"the client failed (Flower's error {message.error.code}): {reason}"
