"""With whom the server shares memory, and how much."""

import logging
from collections.abc import Collection

from flower_psl.transport.shared_memory import LEAST_BYTES, MemoryOffer
from flower_psl.transport.stream_connection import Node
from flower_psl.wire.frames import LONGEST_WITHOUT_TENSORS_BYTES

_LOG = logging.getLogger("flwr.psl")

# What all nodes together may share, and one of them each way. Only what was ever used takes
# memory, and keeps it while the connection lasts.
TOTAL_BYTES = 2**30
LONGEST_BYTES = 2**26
# An offer keeps a file open until the node has answered it.
MOST_UNANSWERED = 256
# A node that comes again and again is served without memory in the end: each mapping can
# outlive its connection for as long as the server computes.
MOST_A_NODE = 100


def offer_memory(node: Node, nodes: Collection[Node], max_frame_bytes: int) -> MemoryOffer | None:
    """Return memory for a node that has come, or None where there is none to be had.

    Parameters
    ----------
    node : Node
        The node.
    nodes : collection of Node
        All nodes that may come, this one among them.
    max_frame_bytes : int
        Largest frame that nodes accept: what is shared may have to be sent with its frame.
    """
    shared = [memory for each in nodes if (memory := each.offered_or_shared) is not None]
    unanswered = sum(each.offer is not None for each in nodes)
    capacity_bytes = min(
        LONGEST_BYTES,
        TOTAL_BYTES // (2 * len(nodes)),
        TOTAL_BYTES // 2 - sum(memory.capacity_bytes for memory in shared),
        max_frame_bytes - LONGEST_WITHOUT_TENSORS_BYTES,
    )
    if (
        capacity_bytes < LEAST_BYTES
        or unanswered >= MOST_UNANSWERED
        or node.num_offers >= MOST_A_NODE
    ):
        return None
    node.num_offers += 1
    try:
        return MemoryOffer(capacity_bytes)
    except OSError as error:
        _LOG.debug("no memory to share: %s", error)
        return None
