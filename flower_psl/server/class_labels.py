"""Class labels out of range, found before the loss meets them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl.errors import ProtocolError
from flower_psl.split import LossFn, seeded

_DEFAULT_IGNORE_INDEX = -100
# Nothing that is drawn with it is used.
_ANY_SEED = 0


def ignored_label(loss_fn: LossFn) -> int | None:
    """Return the label that a loss ignores, or None if its labels may be no class indices."""
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return loss_fn.ignore_index
    if loss_fn in (functional.cross_entropy, functional.nll_loss):
        return _DEFAULT_IGNORE_INDEX
    return None


class ClassLabels:
    """The class indices that a model has outputs for.

    Only losses whose labels are known to be class indices are looked at: cross-entropy
    and negative log-likelihood, as modules or as functions. On an accelerator their own
    check would end the process without a word about the client.

    Parameters
    ----------
    loss_fn : callable
        The loss.
    """

    def __init__(self, loss_fn: LossFn) -> None:
        self._ignored = ignored_label(loss_fn)
        self._num_classes: int | None = None

    def look_at(self, outputs: Tensor) -> None:
        """Note how many classes there are, from outputs ``(n, C, ...)``."""
        self._num_classes = outputs.shape[1] if outputs.dim() > 1 else None

    def ask(self, segment: nn.Module, activations: Tensor) -> None:
        """Let a server segment tell how many classes there are, without a trace in it.

        Parameters
        ----------
        segment : nn.Module
            The server segment.
        activations : Tensor
            Of one example at least.
        """
        if self._ignored is None or self._num_classes is not None:
            return
        segment.eval()
        try:
            with torch.no_grad(), seeded(_ANY_SEED, activations.device):
                self.look_at(segment(activations[:1].clone()))
        except Exception:
            return  # what is wrong shows in the step itself, which says more about it
        finally:
            segment.train()

    def wrong(self, labels: Mapping[int, Tensor], where: object) -> dict[int, ProtocolError]:
        """Return what is wrong with the labels of the clients for which something is.

        Parameters
        ----------
        labels : mapping of int to Tensor
            ``(b_k, ...)`` by client key, alike in dtype and shape; floating-point labels
            (class probabilities) pass.
        where : object
            Round and step, as text for the message.
        """
        num_classes, ignored = self._num_classes, self._ignored
        parts = list(labels.values())
        if ignored is None or num_classes is None or not parts or parts[0].is_floating_point():
            return {}

        def out_of_range(part: Tensor) -> Tensor:
            return ((part < 0) | (part >= num_classes)) & (part != ignored)

        joined = torch.cat(parts)
        # The usual case, for which two looks suffice.
        if not joined.numel() or 0 <= int(joined.min()) <= int(joined.max()) < num_classes:
            return {}
        if not bool(out_of_range(joined).any()):
            return {}
        values = {key: part[out_of_range(part)] for key, part in labels.items()}
        return {
            key: ProtocolError(
                f"client {key}, {where}: label {int(wrong[0])}; the model has {num_classes} "
                f"outputs, so a label is from 0 to {num_classes - 1}. Correct this client's "
                "labels or the model's last layer."
            )
            for key, wrong in values.items()
            if len(wrong)
        }
