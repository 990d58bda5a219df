"""Waiting for something that cannot announce itself."""

import time
from collections.abc import Iterator

from flower_psl.errors import WaitError
from flower_psl.transport.transport import Transport

_FIRST_DELAY_S = 0.002
_LONGEST_DELAY_S = 0.25
_SHARE_OF_WAIT = 0.05


def poll_delays() -> Iterator[float]:
    """Yield the pauses between polls, in seconds.

    A pause is a twentieth of the wait so far, between 2 ms and 0.25 s: a short exchange
    is noticed at once, and a long one is not asked for hundreds of times.
    """
    waited_s = 0.0
    while True:
        delay_s = min(max(_FIRST_DELAY_S, _SHARE_OF_WAIT * waited_s), _LONGEST_DELAY_S)
        waited_s += delay_s
        yield delay_s


def late(where: str, timeout_s: float) -> WaitError:
    """Return the failure of a node that did not answer in time.

    Parameters
    ----------
    where : str
        Which reply is missing: node, client, round and step.
    timeout_s : float
        The bound, in seconds.
    """
    return WaitError(
        f"{where}: no reply within {timeout_s:g} s. Look at the node's log, or raise "
        "step_timeout_s if it is only slow."
    )


def wait_for_nodes(transport: Transport, minimum: int, timeout_s: float) -> list[int]:
    """Wait until enough nodes can be reached.

    Returns
    -------
    list of int
        All that can be reached then.

    Raises
    ------
    WaitError
        If they are fewer than `minimum` after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    for delay_s in poll_delays():
        nodes = transport.nodes()
        if len(nodes) >= minimum:
            return nodes
        if time.monotonic() >= deadline:
            break
        time.sleep(delay_s)
    raise WaitError(
        f"{len(nodes)} nodes after {timeout_s:g} s; min_available_nodes is {minimum}. Start "
        "more SuperNodes, lower min_available_nodes, or raise node_timeout_s."
    )
