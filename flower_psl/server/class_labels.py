"""Class labels out of range, found before the loss meets them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl.errors import ProtocolError
from flower_psl.split import LossFn

_DEFAULT_IGNORE_INDEX = -100


def ignored_label(loss_fn: LossFn) -> int | None:
    """Return the label that a loss ignores, or None if its labels may be no class indices."""
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return loss_fn.ignore_index
    if loss_fn in (functional.cross_entropy, functional.nll_loss):
        return _DEFAULT_IGNORE_INDEX
    return None


def check_class_labels(
    loss_fn: LossFn, outputs: Tensor, labels: Tensor, batch_sizes: Mapping[int, int], where: str
) -> None:
    """Refuse a class index that the outputs have no column for, and name the client.

    Only losses whose labels are known to be class indices are looked at: cross-entropy
    and negative log-likelihood, as modules or as functions. On an accelerator their own
    check would end the process without a word about the client.

    Parameters
    ----------
    loss_fn : callable
        The loss.
    outputs : Tensor
        ``(n, C, ...)``.
    labels : Tensor
        ``(n, ...)``; floating-point labels (class probabilities) pass.
    batch_sizes : mapping of int to int
        Examples by client key, in the order of the rows.
    where : str
        Round and step, for the message.

    Raises
    ------
    ProtocolError
        If a label is neither in ``[0, C)`` nor the loss's ``ignore_index``.
    """
    ignored = ignored_label(loss_fn)
    if ignored is None or labels.is_floating_point() or outputs.dim() < 2:
        return
    num_classes = outputs.shape[1]
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignored)
    if not bool(wrong.any()):
        return
    row = int(wrong.reshape(len(labels), -1).any(1).nonzero()[0])
    ends = torch.tensor(list(batch_sizes.values())).cumsum(0)
    key = list(batch_sizes)[int(torch.searchsorted(ends, row, right=True))]
    value = int(labels[wrong][0])
    raise ProtocolError(
        f"client {key}, {where}: label {value}; the model has {num_classes} outputs, so a label "
        f"is from 0 to {num_classes - 1}. Correct this client's labels or the model's last layer."
    )
