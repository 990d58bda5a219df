"""A run without any Flower process: for notebooks, tests and research."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flower_psl.errors import ConfigError
from flower_psl.transport import Device, InProcessTransport
from flower_psl.wire import Encodings

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import Result

    from flower_psl.server.flower_records import CentralEvaluateFn
    from flower_psl.server.strategy import ParallelSplitLearning


def run_in_process(
    strategy: "ParallelSplitLearning",
    clients: Mapping[int, Device],
    initial_arrays: "ArrayRecord",
    num_rounds: int = 3,
    *,
    timeout: float = 3600,
    evaluate_fn: "CentralEvaluateFn | None" = None,
    fuse_clients: bool = False,
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
    fuse_clients : bool
        Whether the clients of a step compute it as one: one forward and one backward pass of
        the client segment over all their examples. Many clients then cost hardly more than
        one. The weights agree with those of a run without it up to rounding, not bit for
        bit. In the records, a client's seconds are its share of a pass, by examples, and
        the parameter gradients travel once and not once a client.

    Returns
    -------
    Result
        As `ParallelSplitLearning.start` returns it.

    Raises
    ------
    ConfigError
        If the strategy has a `client_strategy`, or clients cannot be fused: their segments
        differ, a layer mixes the examples of a batch (BatchNorm) or draws random numbers
        (dropout), the training data are not a `TensorDataset`, or an encoding is chosen, which
        works client by client. Layers are looked at in the first step.
    PslError
        If the run cannot go on.
    """
    if fuse_clients:
        _check_can_fuse(strategy)
    if strategy.client_strategy is not None:
        raise ConfigError(
            f"client_strategy is a {type(strategy.client_strategy).__name__}, which aggregates "
            "Flower's messages, and those exist in a Flower run only; in process the client "
            "segments are averaged. Leave it out, or call start() in a ServerApp."
        )
    return strategy.run_over(
        InProcessTransport(clients, fuse=fuse_clients),
        initial_arrays,
        num_rounds=num_rounds,
        timeout=timeout,
        evaluate_fn=evaluate_fn,
        min_nodes=len(clients),
    )


def _check_can_fuse(strategy: "ParallelSplitLearning") -> None:
    if strategy.client_sync != "step":
        raise ConfigError(
            f"fuse_clients with client_sync={strategy.client_sync!r}; only clients that share "
            "the weights of every step can compute it as one. Leave out fuse_clients, or choose "
            "client_sync='step'."
        )
    if strategy.failures.quorum < 1:
        raise ConfigError(
            f"fuse_clients with quorum {strategy.failures.quorum}; a step of fused clients is "
            "computed as one, and taken or not. Leave out fuse_clients, or leave quorum at 1."
        )
    if strategy.encodings != Encodings():
        raise ConfigError(
            f"fuse_clients with {strategy.encodings}; what each client sends is encoded on its "
            "own, so all encodings must be 'raw'. Leave out fuse_clients or the encodings."
        )
