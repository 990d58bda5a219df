"""A run without any Flower process: for notebooks, tests and research."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flower_psl.transport import Device, InProcessTransport

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import Result

    from flower_psl.server.strategy import CentralEvaluateFn, ParallelSplitLearning


def run_in_process(
    strategy: "ParallelSplitLearning",
    clients: Mapping[int, Device],
    initial_arrays: "ArrayRecord",
    num_rounds: int = 3,
    *,
    timeout: float = 3600,
    evaluate_fn: "CentralEvaluateFn | None" = None,
) -> "Result":
    """Run a strategy with clients that are called directly.

    The same seed gives the same bits as over Flower's messages.

    Parameters
    ----------
    strategy : ParallelSplitLearning
        The strategy, as for `ParallelSplitLearning.start`.
    clients : mapping of int to SplitClient
        The clients by client key.
    initial_arrays : ArrayRecord
        The whole model's arrays, by its original ``state_dict`` keys.
    num_rounds : int
        Rounds.
    timeout : float
        Bound on the training of one round, in seconds, looked at between steps.
    evaluate_fn : callable, optional
        Central evaluation ``(server_round, arrays)``.

    Returns
    -------
    Result
        As `ParallelSplitLearning.start` returns it.

    Raises
    ------
    PslError
        If the run cannot go on.
    """
    return strategy.run_over(
        InProcessTransport(clients),
        initial_arrays,
        num_rounds=num_rounds,
        timeout=timeout,
        evaluate_fn=evaluate_fn,
        min_nodes=len(clients),
    )
