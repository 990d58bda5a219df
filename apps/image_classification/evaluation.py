"""Accuracy and loss of a whole model on a test set."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model makes of a test set.

    Attributes
    ----------
    accuracy : float
        Part of the examples whose class has the highest score, in [0, 1].
    loss : float
        Mean cross entropy, without label smoothing, in nats.
    num_examples : int
    """

    accuracy: float
    loss: float
    num_examples: int

    def to_metrics(self) -> MetricRecord:
        """Return the metrics `accuracy`, `loss` and `num-examples`."""
        return MetricRecord(
            {"accuracy": self.accuracy, "loss": self.loss, "num-examples": self.num_examples}
        )


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: TensorDataset, *, batch_size: int, device: str
) -> Evaluation:
    """Evaluate a model; it is left in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Returns scores of shape (N, classes); on `device`.
    examples : TensorDataset
        Images of shape (N, C, H, W) and labels of shape (N,), int64; 0 of 0 are correct.
    batch_size : int
        Examples computed at a time.
    device : str
        Where the model computes.
    """
    model.eval()
    images, labels = examples.tensors
    correct, loss = 0, 0.0
    for start in range(0, len(labels), batch_size):
        some = slice(start, start + batch_size)
        scores, targets = model(images[some].to(device)), labels[some].to(device)
        correct += int((scores.argmax(1) == targets).sum())
        loss += float(cross_entropy(scores, targets, reduction="sum"))
    num_examples = len(labels)
    return Evaluation(
        accuracy=correct / max(num_examples, 1),
        loss=loss / max(num_examples, 1),
        num_examples=num_examples,
    )


def central_evaluation(
    model: nn.Module, examples: TensorDataset, *, batch_size: int, device: str
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return an ``evaluate_fn`` for a Flower strategy, which evaluates on the server.

    Parameters
    ----------
    model : nn.Module
        Gets the arrays of every round: not the model that is trained, but another like it.
    examples, batch_size, device
        As for `evaluate`.

    Returns
    -------
    callable
        From round and arrays to the metrics `accuracy`, `loss` and `num-examples`.
    """
    model.to(device)

    def evaluate_arrays(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        result = evaluate(model, examples, batch_size=batch_size, device=device)
        return result.to_metrics()

    return evaluate_arrays
