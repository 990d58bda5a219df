"""What a loss divides its sum by: how much a part of a batch weighs in it."""

from functools import partial

from torch import Tensor, nn

from flower_psl.server.class_labels import ignored_label
from flower_psl.split import LossFn


def loss_normalizer(loss_fn: LossFn, labels: Tensor) -> float:
    """Return what a loss divides the sum over a batch by.

    A loss over n examples is S / N, S a sum over them. For a plain mean N is n. Cross-entropy
    and negative log-likelihood leave out what they ignore, and weigh each label by its class:
    N is then the sum of these weights. For ``reduction="sum"`` it is 1. With N_k of a
    client's part, the gradient of its *own* loss is N / N_k times that of the whole loss.

    Parameters
    ----------
    loss_fn : callable
        The loss. Any other than those named is taken as a mean over examples, unless it has
        ``reduction="sum"``.
    labels : Tensor
        ``(n, ...)``.

    Returns
    -------
    float
        0.0 if every label is ignored.
    """
    if is_sum(loss_fn):
        return 1.0
    ignored = ignored_label(loss_fn)
    if ignored is None or labels.is_floating_point():
        return float(len(labels))
    counted = labels[labels != ignored]
    weight = loss_fn.weight if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)) else None
    if weight is None:
        return float(counted.numel())
    return float(weight.double()[counted.to(weight.device)].sum())


def is_sum(loss_fn: LossFn) -> bool:
    """Tell whether a loss says of itself that it is a sum: as a module, or by a keyword."""
    if isinstance(loss_fn, partial) and "reduction" in loss_fn.keywords:
        return bool(loss_fn.keywords["reduction"] == "sum")
    inner = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    return getattr(inner, "reduction", "mean") == "sum"
