"""The devices of a run as Flower's strategies see them: awaited, in a fixed order, measured."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flower_psl import ClientError, ConfigError, WaitError

from .exchange import Exchange

_POLL_S = 0.05


class Federation(Grid):
    """A view of a grid, with the devices that have data.

    Replies come in the order of the client keys, so that sums have the same bits in every run.

    Parameters
    ----------
    grid : Grid
        The grid of a running ServerApp.
    keys : mapping of int to int
        Client key of each node, in order.
    num_examples : mapping of int to int
        Training examples by client key.

    Attributes
    ----------
    num_examples : dict of int to int
    trained : Exchange or None
        The last one in which devices trained.
    """

    def __init__(
        self, grid: Grid, keys: Mapping[int, int], num_examples: Mapping[int, int]
    ) -> None:
        self.num_examples = dict(num_examples)
        self.trained: Exchange | None = None
        self._grid = grid
        self._keys = dict(keys)

    @classmethod
    def gather(
        cls, grid: Grid, *, min_nodes: int, node_timeout_s: float, timeout_s: float
    ) -> Self:
        """Wait for enough nodes, and ask all that are there then whose data they have.

        Raises
        ------
        WaitError
            If too few nodes come, or one does not answer.
        ClientError
            If a device fails.
        ConfigError
            If two have the same data, or none has any.
        """
        nodes = _awaited(grid, min_nodes, node_timeout_s)
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        answers = cls(grid, {node: node for node in nodes}, {}).converse(questions, timeout_s)
        keys, num_examples = {}, {}
        for node, content in answers.contents.items():
            about = content.config_records["about"]
            key = cast(int, about["client-key"])
            if key in num_examples:
                raise ConfigError(
                    f"two nodes have partition-id = {key}; start each SuperNode with a "
                    "partition-id of its own, by --node-config."
                )
            num_examples[key] = cast(int, about["num-examples"])
            if num_examples[key]:
                keys[node] = key
        if not keys:
            raise ConfigError(
                f"none of {len(nodes)} devices has training data; raise max-train-examples, or "
                "choose another partitioner."
            )
        ordered = dict(sorted(keys.items(), key=lambda item: item[1]))
        return cls(grid, ordered, {key: num_examples[key] for key in ordered.values()})

    def converse(self, messages: Iterable[Message], timeout_s: float) -> Exchange:
        """Send messages, to each of which there has to be a reply.

        Raises
        ------
        ClientError
            If a device fails.
        WaitError
            If one does not answer in time.
        """
        sent = list(messages)
        received, exchange = self._exchange(sent, timeout_s)
        for message in received:
            if message.has_error():
                raise ClientError(self._failure(message))
        if len(received) < len(sent):
            raise WaitError(
                f"{len(received)} of {len(sent)} devices answered within {timeout_s:g} s; look at "
                "the others' logs, or raise step-timeout-s."
            )
        return exchange

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send the messages of a strategy, which can do without the replies of some devices.

        Raises
        ------
        ClientError
            If no device returns what it was asked for.
        """
        sent = list(messages)
        if not sent:
            return []
        received, exchange = self._exchange(sent, timeout)
        if not exchange.contents:
            raise ClientError(
                f"none of {len(sent)} devices returned what it was asked for; "
                + (self._failure(received[0]) if received else "none answered in time.")
            )
        if sent[0].metadata.message_type == MessageType.TRAIN:
            self.trained = exchange
        return received

    def _exchange(
        self, sent: list[Message], timeout_s: float | None
    ) -> tuple[list[Message], Exchange]:
        started = time.monotonic()
        waiting = set(self._grid.push_messages(sent))
        received: list[Message] = []
        while True:
            for message in self._grid.pull_messages(waiting):
                waiting.discard(message.metadata.reply_to_message_id)
                received.append(message)
            seconds = time.monotonic() - started
            if not waiting or (timeout_s is not None and seconds >= timeout_s):
                break
            time.sleep(_POLL_S)
        received.sort(key=lambda message: self._keys[message.metadata.src_node_id])
        return received, Exchange.of(sent, received, self._keys, seconds)

    def _failure(self, message: Message) -> str:
        node = message.metadata.src_node_id
        client = f", client {self._keys[node]}," if self.num_examples else ""
        return f"node {node}{client} failed: {message.error.reason}"

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes with data, in the order of their client keys."""
        return list(self._keys)

    def set_run(self, run: Any) -> None:
        """Do what the grid itself does, as all that follows."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies."""
        return self._grid.pull_messages(message_ids)


def _awaited(grid: Grid, min_nodes: int, timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while len(nodes := list(grid.get_node_ids())) < min_nodes:
        if time.monotonic() >= deadline:
            raise WaitError(
                f"{len(nodes)} nodes after {timeout_s:g} s; min-available-nodes is {min_nodes}. "
                "Start more SuperNodes, lower min-available-nodes, or raise node-timeout-s."
            )
        time.sleep(_POLL_S)
    return sorted(nodes)
