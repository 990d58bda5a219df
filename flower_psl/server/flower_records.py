"""A run's tensors and metrics as Flower's records."""

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result
from torch import Tensor

from flower_psl.server.run_history import Metrics, RunHistory, StateDict

CentralEvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return an ArrayRecord of tensors, in their order."""
    return ArrayRecord({name: tensor.cpu() for name, tensor in tensors.items()})


def to_result(history: RunHistory) -> Result:
    """Return what `Strategy.start` returns."""
    return Result(
        arrays=to_arrays(history.state_dict),
        train_metrics_clientapp={k: MetricRecord(v) for k, v in history.train.items()},
        evaluate_metrics_clientapp={
            k: MetricRecord(v) for k, v in history.split_evaluation.items()
        },
        evaluate_metrics_serverapp={
            k: MetricRecord(v) for k, v in history.central_evaluation.items()
        },
    )


def on_state_dict(evaluate_fn: CentralEvaluateFn) -> Callable[[int, StateDict], Metrics | None]:
    """Return a central evaluation that takes a state dict, and returns plain metrics."""

    def evaluate(server_round: int, state_dict: StateDict) -> Metrics | None:
        metrics = evaluate_fn(server_round, to_arrays(state_dict))
        return None if metrics is None else dict(metrics)

    return evaluate
