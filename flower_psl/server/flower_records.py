"""A run's tensors and metrics as Flower's records."""

from collections.abc import Mapping

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result
from torch import Tensor

from flower_psl.server.run_history import RunHistory


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
