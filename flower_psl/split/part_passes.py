"""The server's part of a step, one client after the other, as their activations come."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from flower_psl.split.module_index import ModuleIndex
from flower_psl.split.randomness import seeded
from flower_psl.split.server_pass import LossFn, backpropagate, cut_gradient, scalar


class _Part(NamedTuple):
    """A client's part of the global batch, on its way through the server segment."""

    activations: Tensor
    outputs: Tensor
    # The same values without their graph: where the loss's gradient stops until it goes on.
    seen_by_loss: Tensor


class PartPasses:
    """The server segment's passes over the parts of one global batch.

    Forward passes can be made in any order; the order of backward passes is that in which the
    gradients of the server's parameters are summed. The loss is that of the whole batch, so
    together they come, up to rounding, to what one pass over it does, if the segment treats
    every example alone (`check_example_wise`).

    Parameters
    ----------
    segment : ModuleIndex
        The server segment, which is put into training mode.
    """

    def __init__(self, segment: ModuleIndex) -> None:
        segment.train()
        self._segment = segment.module
        self._parts: dict[int, _Part] = {}

    def forward(self, client: int, activations: Tensor) -> None:
        """Run the segment over one client's activations, ``(b_k, ...)``."""
        leaf = activations.detach().requires_grad_()
        with torch.enable_grad():
            # The segment gets no leaf of the graph, since its first layer may work in place.
            outputs = self._segment(leaf.clone())
        self._parts[client] = _Part(leaf, outputs, outputs.detach().requires_grad_())

    def outputs(self, clients: Iterable[int]) -> Tensor:
        """Return the outputs for some clients, ``(n, ...)``, in their order, detached."""
        return torch.cat([self._parts[client].outputs.detach() for client in clients])

    def loss(
        self, clients: Iterable[int], labels: Tensor, loss_fn: LossFn, *, seed: int
    ) -> Tensor:
        """Return the loss over the parts of some clients, and keep its gradient.

        Parameters
        ----------
        clients : iterable of int
            Whose parts make the global batch, in order.
        labels : Tensor
            ``(n, ...)``, in the same order.
        loss_fn : callable
            ``loss_fn(outputs, labels)``, a scalar.
        seed : int
            Seed of what the loss draws.

        Raises
        ------
        ConfigError
            If the loss is not a scalar tensor.
        PslError
            If it does not depend on the outputs.
        """
        outputs = [self._parts[client].seen_by_loss for client in clients]
        with torch.enable_grad(), seeded(seed, outputs[0].device):
            loss = scalar(loss_fn(torch.cat(outputs), labels))
        backpropagate(loss)
        return loss.detach()

    def backward(self, client: int) -> Tensor:
        """Add one part's gradients to the segment's ``.grad`` and return the cut's.

        Returns
        -------
        Tensor
            Gradient of the loss by the client's activations, of their shape, contiguous.

        Raises
        ------
        PslError
            If the outputs do not depend on the activations.
        """
        part = self._parts.pop(client)
        if part.outputs.requires_grad:
            # `inputs` is not restricted: the parameters' gradients are wanted as well.
            torch.autograd.backward(part.outputs, part.seen_by_loss.grad)
        return cut_gradient(part.activations)
