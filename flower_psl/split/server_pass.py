"""The server's part of a step: from the activations to the loss, and back to the cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flower_psl.errors import ConfigError, PslError
from flower_psl.split.module_index import ModuleIndex
from flower_psl.split.randomness import seeded

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ServerPass:
    """A forward pass through the server segment, up to the loss.

    Attributes
    ----------
    outputs : Tensor
        The model's outputs, detached.
    loss : Tensor
        The loss, a scalar with its autograd graph.
    """

    outputs: Tensor
    loss: Tensor
    _activations: Sequence[Tensor]

    def backward(self) -> list[Tensor]:
        """Add the server segment's gradients to its ``.grad`` and return the cut's.

        Returns
        -------
        list of Tensor
            Gradient of the loss by each client's activations, of their shape, contiguous.

        Raises
        ------
        PslError
            If the loss does not depend on the activations.
        """
        backpropagate(self.loss)
        return [cut_gradient(part) for part in self._activations]


def check_loss_fn(loss_fn: LossFn) -> None:
    """Refuse a loss that has parameters: no optimizer would train them.

    Raises
    ------
    ConfigError
        If `loss_fn` is a module with parameters.
    """
    if not callable(loss_fn):
        raise ConfigError(
            f"loss_fn is {loss_fn!r}; it must be a function of (outputs, labels) that returns a "
            "scalar, such as torch.nn.CrossEntropyLoss()"
        )
    if isinstance(loss_fn, nn.Module):
        names = [name for name, _ in loss_fn.named_parameters()]
        if names:
            raise ConfigError(
                f"loss_fn has parameters of its own, {names}; they belong to no segment and would "
                "not be trained. Move them into the model, behind the cut."
            )


def forward(
    segment: ModuleIndex,
    activations: Sequence[Tensor],
    labels: Tensor,
    loss_fn: LossFn,
    *,
    seed: int,
) -> ServerPass:
    """Run the server segment, in training mode, over the global batch.

    Parameters
    ----------
    segment : ModuleIndex
        The server segment. Its buffers change as in centralized training.
    activations : sequence of Tensor
        ``(b_k, ...)``: the clients' activations, in client order.
    labels : Tensor
        ``(n, ...)``.
    loss_fn : callable
        ``loss_fn(outputs, labels)``, a scalar.
    seed : int
        Seed of the random layers.

    Raises
    ------
    ConfigError
        If the loss is not a scalar tensor.
    """
    segment.train()
    parts = [part.detach().requires_grad_() for part in activations]
    with torch.enable_grad(), seeded(seed, parts[0].device):
        # The segment gets no leaf of the graph, since its first layer may work in place.
        outputs = segment.module(torch.cat(parts))
        loss = loss_fn(outputs, labels)
    return ServerPass(outputs=outputs.detach(), loss=scalar(loss), _activations=parts)


def scalar(loss: object) -> Tensor:
    """Return what a loss function returned.

    Raises
    ------
    ConfigError
        If it is not a scalar tensor.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            f"loss_fn returned {shown}; the loss is one scalar over the global batch. Use a "
            "reduction such as 'mean'."
        )
    return loss


def backpropagate(loss: Tensor) -> None:
    """Add a loss's gradients to the ``.grad`` of all that it depends on.

    Raises
    ------
    PslError
        If it depends on nothing.
    """
    if not loss.requires_grad:
        raise PslError(
            "the loss depends on no parameter and not on the activations; a step needs a "
            "loss that is computed, without detaching, from the model's outputs"
        )
    # `inputs` is not restricted: the parameters' gradients are wanted as well.
    loss.backward()  # type: ignore[no-untyped-call]


def cut_gradient(activations: Tensor) -> Tensor:
    """Return the gradient that has come to a client's activations, contiguous.

    Raises
    ------
    PslError
        If none has.
    """
    if activations.grad is None:
        raise PslError(
            "the loss does not depend on the activations; the server segment must use its input"
        )
    return activations.grad.contiguous()
