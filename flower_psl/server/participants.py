"""Who takes part: nodes, their client keys and their data."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from flower_psl.errors import ClientError
from flower_psl.transport import Transport, wait_for_nodes
from flower_psl.wire import DescribeReply, TensorSpec, differences, segment_spec

_LOG = logging.getLogger("flwr.psl")
_MOST_DIFFERENCES = 5


@dataclass(frozen=True, kw_only=True)
class Participants:
    """The clients of a run, every mapping by client key in ascending order.

    Attributes
    ----------
    nodes : mapping of int to int
        Where each client is reached.
    num_examples, num_test_examples : mapping of int to int
        Examples that each client has.
    segment : mapping of str to TensorSpec
        Their client segment.
    need_optimizers, need_states : bool
        Whether clients update their segments by themselves, and save them for a checkpoint.
    have_keys : bool
        Whether every node has told its client key.
    """

    nodes: Mapping[int, int]
    num_examples: Mapping[int, int]
    num_test_examples: Mapping[int, int]
    segment: Mapping[str, TensorSpec] = field(default_factory=dict)
    need_optimizers: bool = False
    need_states: bool = False
    have_keys: bool = True

    def key_of(self, node: int, description: DescribeReply) -> int | None:
        """Return the key of a node that describes itself again, or None if it has none."""
        if self.have_keys:
            return description.client_key
        return next((key for key, known in self.nodes.items() if known == node), None)

    def check_same(self, key: int, node: int, description: DescribeReply) -> None:
        """Refuse a client that comes back as another than it was.

        Raises
        ------
        ClientError
            If its data have changed in number, or its segment or optimizer does not fit.
        """
        for name, before, now in (
            ("training", self.num_examples[key], description.num_examples),
            ("test", self.num_test_examples[key], description.num_test_examples),
        ):
            if before != now:
                raise ClientError(
                    f"client {key}, node {node}: it came back with {now} {name} examples, and had "
                    f"{before}; data must keep their size during a run. Give it its data again."
                )
        _check_device(node, description, self.segment, self.need_optimizers, self.need_states)


def gather(
    transport: Transport,
    segment: nn.Module,
    *,
    min_nodes: int,
    node_timeout_s: float,
    describe_timeout_s: float,
    need_optimizers: bool = False,
    need_states: bool = False,
) -> Participants:
    """Wait for nodes and let them describe themselves.

    Parameters
    ----------
    transport : Transport
        What reaches them.
    segment : nn.Module
        The server's copy of the client segment, which every device's must equal.
    min_nodes : int
        Nodes to wait for.
    node_timeout_s, describe_timeout_s : float
        Bounds on the wait for the nodes, and for their descriptions, in seconds.
    need_optimizers, need_states : bool
        Whether clients update their segments by themselves, and save them for a checkpoint.

    Raises
    ------
    WaitError
        If too few nodes come, or answer.
    ClientError
        If two nodes have one client key, a segment differs, one that has data lacks an
        optimizer or a folder that it needs, or no client has data.
    """
    nodes = wait_for_nodes(transport, min_nodes, node_timeout_s)
    answers = transport.describe(nodes, describe_timeout_s)
    descriptions = answers.replies if len(answers.replies) >= min_nodes else answers.all()
    for failure in answers.failures.values():
        _LOG.warning("left out of the run: %s", failure)
    expected = segment_spec([*segment.named_parameters(), *segment.named_buffers()])
    for node, description in descriptions.items():
        _check_device(node, description, expected, need_optimizers, need_states)
    node_of = _assign_keys(descriptions)
    if not any(descriptions[node].num_examples for node in node_of.values()):
        raise ClientError(
            f"none of the {len(node_of)} clients has training data; give at least one an example"
        )
    empty = [key for key, node in node_of.items() if descriptions[node].num_examples == 0]
    if empty:
        _LOG.warning("clients %s have no training data and take no part in training", empty)
    return Participants(
        nodes=node_of,
        num_examples={key: descriptions[node].num_examples for key, node in node_of.items()},
        num_test_examples={
            key: descriptions[node].num_test_examples for key, node in node_of.items()
        },
        segment=expected,
        need_optimizers=need_optimizers,
        need_states=need_states,
        have_keys=all(description.client_key is not None for description in descriptions.values()),
    )


def _assign_keys(descriptions: Mapping[int, DescribeReply]) -> dict[int, int]:
    """Return the nodes by client key, in ascending order of the keys."""
    node_of: dict[int, int] = {}
    for node, description in descriptions.items():
        key = description.client_key
        if key is None:
            _LOG.warning(
                "node %d has no client key (partition-id or client-key in its node config), so "
                "clients are numbered by node id, which Flower draws anew in every run: this run "
                "cannot be repeated bit for bit",
                node,
            )
            return dict(enumerate(sorted(descriptions)))
        if key in node_of:
            raise ClientError(
                f"nodes {node_of[key]} and {node} both have the client key {key}; keys must "
                "differ. Give each node a partition-id of its own."
            )
        node_of[key] = node
    return dict(sorted(node_of.items()))


def _check_device(
    node: int,
    description: DescribeReply,
    segment: Mapping[str, TensorSpec],
    need_optimizers: bool,
    need_states: bool,
) -> None:
    lines = differences(segment, description.segment)
    if lines:
        more = len(lines) - _MOST_DIFFERENCES
        shown = "; ".join(lines[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise ClientError(
            f"node {node}: its client segment is not the server's: {shown}. Build the same model "
            "and cut it at the same place on both sides."
        )
    if need_optimizers and description.num_examples and not description.has_optimizer:
        raise ClientError(
            f"node {node}: its SplitClient has no optimizer_fn; with client_sync='round' and "
            "'none' a device updates its segment by itself. Make it with SplitClient(..., "
            "optimizer_fn=lambda params: torch.optim.SGD(params, lr=0.1))."
        )
    if need_states and description.num_examples and not description.keeps_state:
        raise ClientError(
            f"node {node}: its SplitClient has no state_dir; these checkpoints need what devices "
            "train by themselves, which each device saves in a folder of its own. Make it with "
            "SplitClient(..., state_dir='/var/lib/psl'), or save at the end of rounds only, which "
            "is enough for client_sync='round'."
        )
