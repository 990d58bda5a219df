"""Asking nodes, by Flower messages, to open their streams."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flower_psl.errors import presentable
from flower_psl.transport.flower_messages import pull, push
from flower_psl.transport.polling import poll_delays
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_ticket import SESSION, TICKET, Ticket

_LOG = logging.getLogger("flwr.psl")

# A held session message is answered when the run ends, which may take days.
_TTL_S = 30 * 24 * 3600.0

# Nodes that have their ticket and have not connected. A simulation looks through all
# messages that wait for each of its nodes, several times a second: a thousand messages at
# once would take it minutes.
_MOST_ON_THEIR_WAY = 128

# How long a simulation's other processes may take to start before one gets more than its
# share of the nodes.
_PATIENCE_S = 10.0

# Within about a minute Flower answers for a process that is gone. A lost node that is there and
# holds its message for longer was started anew, and knows nothing of it.
_FORGOTTEN_S = 90.0

# A node that answers at once that it cannot serve is to have time to be mended.
_PAUSE_S = 30.0

# Each node that is let in later takes one of the connections that the server has to spare;
# these are half of them.
_MOST_NEW = 128

# Nodes that a log line names.
_MOST_NAMED = 3

_ANSWER = "psl-session"
_LEFT_TO_OTHERS = "left-to-others"


def session_answer(num_requests: int = 0, *, left_to_others: bool = False) -> RecordDict:
    """Return what a node answers when its session has ended, or goes on in the background.

    Parameters
    ----------
    num_requests : int
        How many requests it has answered.
    left_to_others : bool
        Whether it opened no stream, because its process has its share of the nodes.
    """
    return RecordDict(
        {
            _ANSWER: MetricRecord(
                {"num-requests": num_requests, _LEFT_TO_OTHERS: int(left_to_others)}
            )
        }
    )


@dataclass
class _Absence:
    """Since when a node is lost or was asked last, and whether it was asked in this absence."""

    since: float
    was_asked: bool = False


class FlowerSessions:
    """The session messages of a run: one a node, answered when its session ends.

    In a simulation a node answers at once, and serves on from a thread of the process that
    got its message. Flower gives most messages to whichever process is fastest; one that
    serves its share of the nodes leaves further ones to the others, and these nodes are
    asked again.

    Parameters
    ----------
    grid : Grid
        The grid of a running ServerApp.
    tickets : mapping of int to Ticket
        What each node needs to connect.
    admit : callable, optional
        Lets further nodes in, and returns their tickets; without it nobody else comes in.
    """

    def __init__(
        self,
        grid: Grid,
        tickets: Mapping[int, Ticket],
        admit: Callable[[Collection[int]], Mapping[int, Ticket]] = lambda nodes: {},
    ) -> None:
        self._grid = grid
        self._tickets = dict(tickets)
        self._admit = admit
        self._absences: dict[int, _Absence] = {}
        self._new: set[int] = set()
        self._to_ask = deque(tickets)
        self._asked: dict[str, int] = {}
        self._failures: dict[int, str] = {}

    def open(self, stream: StreamTransport, timeout_s: float, enough: int | None = None) -> str:
        """Let nodes connect; if enough did, say once which did not.

        Parameters
        ----------
        stream : StreamTransport
            What they connect to.
        timeout_s : float
            Bound on the wait for the next node, in seconds.
        enough : int, optional
            How many must connect; all of them unless given.

        Returns
        -------
        str
            Why nodes did not connect, if too few did; empty if enough did.
        """
        missing = set(self._tickets)
        may_miss = 0 if enough is None else len(missing) - enough
        silent: set[int] = set()
        last_came = time.monotonic()
        delays = poll_delays()
        while awaited := missing - self._failures.keys():
            if len(missing - awaited) > may_miss:
                break
            waited_s = time.monotonic() - last_came
            if waited_s >= timeout_s:
                silent = awaited
                break
            on_their_way = len(awaited) - len(self._to_ask)
            self._ask(_MOST_ON_THEIR_WAY - on_their_way, insist=waited_s >= _PATIENCE_S)
            if stream.await_node(next(delays)):
                while stream.await_node(0.0):
                    pass
                # A node that breaks its connection and opens it again is no other one that came.
                if came := missing.intersection(stream.nodes()):
                    missing -= came
                    last_came = time.monotonic()
                    delays = poll_delays()
            self._look()
        failed = {node: self._failures[node] for node in sorted(missing & self._failures.keys())}
        num_nodes = len(self._tickets)
        problem = " ".join([*_failed(failed), *_silent(silent, num_nodes, timeout_s)])
        if len(missing) > may_miss:
            return problem
        # Who is missing is asked again like a lost node.
        self._to_ask.clear()
        if problem:
            _LOG.warning("%s The run goes on with the others.", problem)
        return ""

    def call_back(self, absent: Collection[int]) -> None:
        """Give nodes that are not there their tickets again, those that can take a message.

        A node takes one when Flower has noticed that the process is gone which held the
        message before, and has answered that; it does so after about a minute.
        """
        now = time.monotonic()
        self._absences = {node: self._absences.get(node) or _Absence(now) for node in absent}
        if not absent:
            return
        self._look()
        held = set(self._asked.values())
        again = [
            node
            for node in sorted(set(self._grid.get_node_ids()).intersection(absent))
            if self._is_due(self._absences[node], now, is_held=node in held)
        ]
        if again:
            _LOG.info("nodes %s are asked to open their streams again", again)
            # What a node has not answered so far, nobody awaits any more.
            self._asked = {name: node for name, node in self._asked.items() if node not in again}
            self._absences |= {node: _Absence(now, was_asked=True) for node in again}
            self._to_ask.extend(again)
            self._ask(len(self._to_ask), insist=True)

    def let_in(self) -> None:
        """Give tickets to nodes that were not there before.

        A client that was away when the run began comes as such a node, and so does a device
        without a key of its own whenever it is started again.
        """
        there = set(self._grid.get_node_ids())
        self._new &= there
        room = _MOST_NEW - len(self._new)
        tickets = self._admit(sorted(there - self._tickets.keys())[:room])
        if not tickets:
            return
        _LOG.info("nodes %s are new, and asked to open their streams", sorted(tickets))
        self._tickets |= tickets
        self._new |= tickets.keys()
        self._to_ask.extend(tickets)
        self._ask(len(self._to_ask), insist=True)

    @staticmethod
    def _is_due(absence: _Absence, now: float, *, is_held: bool) -> bool:
        """Tell whether a node is to be asked now."""
        if is_held:
            return now - absence.since >= _FORGOTTEN_S
        return not absence.was_asked or now - absence.since >= _PAUSE_S

    def await_ends(self, timeout_s: float, absent: Iterable[int] = ()) -> None:
        """Wait until every node has answered that is not absent, so that it is free again."""
        deadline = time.monotonic() + timeout_s
        delays = poll_delays()
        self._look()
        while (held := set(self._asked.values()).difference(absent)) and (
            time.monotonic() < deadline
        ):
            time.sleep(next(delays))
            self._look()
        if held:
            _LOG.warning(
                "nodes %s have not ended their sessions within %g s; they will when they notice "
                "that the server is gone",
                sorted(held),
                timeout_s,
            )

    def _ask(self, at_most: int, *, insist: bool) -> None:
        """Send nodes their tickets; with `insist`, whoever gets one must serve the node."""
        nodes = [self._to_ask.popleft() for _ in range(min(at_most, len(self._to_ask)))]
        if not nodes:
            return
        tickets = [self._tickets[node] for node in nodes]
        messages = [
            Message(
                RecordDict({TICKET: ConfigRecord({**_values(ticket, insist)})}),
                node,
                SESSION,
                ttl=_TTL_S,
            )
            for node, ticket in zip(nodes, tickets, strict=True)
        ]
        taken = push(self._grid, messages)
        self._asked |= taken
        for node in set(nodes).difference(taken.values()):
            self._failures[node] = "the SuperLink did not take its session message"

    def _look(self) -> None:
        """Take the answers that are there."""
        if not self._asked:
            return
        for answer in pull(self._grid, list(self._asked)):
            node = self._asked.pop(answer.metadata.reply_to_message_id, None)
            if node is None:
                continue
            if answer.has_error():
                self._failures[node] = presentable(str(answer.error.reason).strip())
            elif _is_left_to_others(answer):
                self._to_ask.append(node)


def _is_left_to_others(answer: Message) -> bool:
    metrics = answer.content.metric_records.get(_ANSWER)
    return metrics is not None and bool(metrics.get(_LEFT_TO_OTHERS))


def _values(ticket: Ticket, insist: bool) -> dict[str, int | float | str]:
    return replace(ticket, num_nodes=0 if insist else ticket.num_nodes).to_values()


def _failed(reasons: Mapping[int, str]) -> list[str]:
    """Return, as sentences, why nodes opened no stream that say so."""
    told = [
        f"node {node} opened no stream: {reason}."
        for node, reason in islice(reasons.items(), _MOST_NAMED)
    ]
    more = len(reasons) - len(told)
    return [*told, f"{more} more opened none for such reasons."] if more else told


def _silent(nodes: set[int], num_nodes: int, timeout_s: float) -> list[str]:
    """Return, as sentences, that nodes opened no stream and do not say why."""
    if not nodes:
        return []
    named = ", ".join(str(node) for node in sorted(nodes)[:_MOST_NAMED])
    return [
        f"{len(nodes)} of {num_nodes} nodes opened no stream ({named}"
        f"{', ...' if len(nodes) > _MOST_NAMED else ''}), and for {timeout_s:g} s none has; they "
        "must be able to reach the server. Set the stream's address, or advertise the one they "
        "see."
    ]
