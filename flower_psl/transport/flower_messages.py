"""Requests as Flower messages over a Grid."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_psl.errors import ClientError, ProtocolError, PslError, presentable
from flower_psl.transport.answers import Answers, belonging
from flower_psl.transport.polling import late, poll_delays
from flower_psl.wire import (
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    records,
)

_LOG = logging.getLogger("flwr.psl")

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
        # Whose replies nobody waits for any more, by message. They are still pulled, lest the
        # SuperLink keep them, and until then their nodes have no time for anything else.
        self._late: dict[str, int] = {}

    @property
    def refused(self) -> dict[str, int]:
        """Nothing: Flower knows who sends a message."""
        return {}

    def nodes(self) -> list[int]:
        """Return the connected nodes that have answered what they were asked."""
        if self._late:
            self._pull()
        return sorted(set(self._grid.get_node_ids()).difference(self._late.values()))

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        """Ask each node for its description."""
        where = {node: f"node {node}, describing itself" for node in nodes}
        messages = {node: (DESCRIBE, RecordDict()) for node in where}
        return self._converse(messages, where, records.decode_description, timeout_s)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        """Send each node its request and wait for its reply."""
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

        return belonging(self._converse(messages, where, decode, timeout_s), requests)

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Do nothing: a message costs a node far more than loading a batch."""

    def _converse(
        self,
        contents: Mapping[int, tuple[str, RecordDict]],
        where: Mapping[int, str],
        decode: Callable[[RecordDict], T],
        timeout_s: float,
    ) -> Answers[T]:
        """Send one message a node, await one reply a node, decode as they arrive."""
        deadline = time.monotonic() + timeout_s
        ttl_s = timeout_s + _TTL_MARGIN_S
        pending = push(
            self._grid,
            [
                Message(content, node, kind, ttl=ttl_s)
                for node, (kind, content) in contents.items()
            ],
        )
        outcomes: dict[int, T | PslError] = {
            node: _not_taken(where[node]) for node in contents.keys() - pending.values()
        }
        delays = poll_delays()
        while pending:
            for message in self._pull(pending):
                # A reply may come twice.
                node = pending.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    outcomes[node] = _decoded(message, where[node], decode)
            if not pending or time.monotonic() >= deadline:
                break
            time.sleep(next(delays))
        self._late |= pending
        outcomes |= {node: late(where[node], timeout_s) for node in pending.values()}
        return Answers.of(contents, outcomes)

    def _pull(self, pending: Iterable[str] = ()) -> list[Message]:
        """Return the replies that are there, and forget the late ones among them."""
        messages = pull(self._grid, [*pending, *self._late])
        for message in messages:
            self._late.pop(message.metadata.reply_to_message_id, None)
        return messages


def push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Send messages, and return the nodes of those that the SuperLink took, by their ids.

    Of a message that is not taken, some grids return None, others nothing, or nothing at all.
    """
    taken = set(grid.push_messages(messages))
    return {
        message.metadata.message_id: message.metadata.dst_node_id
        for message in messages
        if message.metadata.message_id in taken
    }


def pull(grid: Grid, ids: Sequence[str]) -> list[Message]:
    """Return the replies that are there to messages of some ids.

    Where a node has sent what Flower itself cannot read, Flower raises. By then it has taken
    that reply, and those that came with it; asked again, it answers for them that they are gone.
    An error that remains however often it is asked is of another kind, and is raised.
    """
    causes: list[str] = []
    for _ in ids:
        try:
            replies = list(grid.pull_messages(ids))
        except Exception as error:  # of whatever kind: that depends on what was sent
            causes.append(presentable(f"{type(error).__name__}: {error}"))
            continue
        if causes:
            _LOG.warning(
                "Flower could not read a reply (%s); it is lost, with those that came at the "
                "same time",
                "; ".join(dict.fromkeys(causes)),
            )
        return replies
    return list(grid.pull_messages(ids))


def _decoded(message: Message, where: str, decode: Callable[[RecordDict], T]) -> T | PslError:
    """Return a node's reply, or what is wrong with it."""
    if message.has_error():
        reason = (message.error.reason or "no reason given").strip()
        return ClientError(
            f"{where}: the client failed (Flower's error {message.error.code}): {reason}"
        )
    try:
        return decode(message.content)
    except ProtocolError as error:
        failure = ProtocolError(f"{where}: {error}")
        failure.__cause__ = error
        return failure


def _not_taken(where: str) -> ClientError:
    return ClientError(
        f"{where}: the SuperLink did not take the message; the node may have left, or the "
        "message is too large. Look at the SuperLink's log."
    )
