"""When a run reached a target accuracy."""

from collections.abc import Sequence
from itertools import pairwise


def cost_to_reach(
    target: float, accuracies: Sequence[float], costs: Sequence[float]
) -> float | None:
    """Return what a run had cost when it reached a target, on a straight line between rounds.

    Parameters
    ----------
    target : float
        The accuracy to reach.
    accuracies, costs : sequence of float
        After each round, round 0 first: accuracy, and the cost up to then.

    Returns
    -------
    float or None
        None if it never did.
    """
    rounds = pairwise(zip(accuracies, costs, strict=True))
    for (low, before), (high, after) in rounds:
        if high >= target:
            part = (target - low) / (high - low) if low < target else 0.0
            return before + part * (after - before)
    return None
