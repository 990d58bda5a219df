"""A device's part of a step: forward to the cut, and backward from it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flower_psl.errors import CutError
from flower_psl.split.batch_norm import Moments, record_moments, running_statistics
from flower_psl.split.module_index import ModuleIndex
from flower_psl.split.randomness import seeded

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ClientPass:
    """What is left of a forward pass until its gradient comes.

    Attributes
    ----------
    activations : Tensor
        The cut layer's output, ``(b_k, ...)``, detached and contiguous.
    moments : Moments
        Moments of the BatchNorm inputs, empty in evaluation.
    """

    activations: Tensor
    moments: Moments
    _output: Tensor
    _parameters: Mapping[str, Tensor]

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """Continue the backward pass from the cut.

        Parameters
        ----------
        gradient : Tensor
            Gradient of the loss by `activations`, of the same shape.

        Returns
        -------
        dict of str to Tensor
            Gradient by parameter. A parameter that the output does not depend on is
            left out, as autograd leaves its ``grad`` at ``None``.
        """
        if not self._output.requires_grad:
            return {}
        gradients = torch.autograd.grad(
            self._output, list(self._parameters.values()), gradient, allow_unused=True
        )
        return {
            name: gradient.contiguous()
            for name, gradient in zip(self._parameters, gradients, strict=True)
            if gradient is not None
        }

    def unused(self, gradients: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the trainable parameters that `backward` found no gradient of."""
        return tuple(name for name in self._parameters if name not in gradients)


@torch.no_grad()
def load_tensors(segment: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a segment's parameters and buffers of the same names."""
    for name, tensor in [*segment.named_parameters(), *segment.named_buffers()]:
        if name in values:
            tensor.copy_(values[name])


def trained_tensors(segment: ModuleIndex) -> dict[str, Tensor]:
    """Return those of a segment's tensors that training changes.

    These are the trainable parameters and BatchNorm's running statistics: a forward pass
    that changes another buffer is refused.
    """
    changing = running_statistics(segment.module) | {
        name for name, parameter in segment.parameters.items() if parameter.requires_grad
    }
    return {name: value for name, value in segment.tensors.items() if name in changing}


def forward(
    segment: ModuleIndex,
    weights: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    training: bool,
    seed: int,
) -> ClientPass:
    """Run the client segment with the given weights, which stay as they are.

    The segment is a description only: its own tensors are neither read nor written, and
    may be on the meta device. A repeated call gives the same bits, dropout included.

    Parameters
    ----------
    segment : ModuleIndex
        The client segment.
    weights : mapping of str to Tensor
        Every parameter and buffer, as `ModuleIndex.tensors` names them.
    inputs : Tensor, tuple or dict of Tensor
        Positional or keyword arguments of the segment, batch first.
    training : bool
        Training mode with an autograd graph, or evaluation without one.
    seed : int
        Seed of the random layers.

    Raises
    ------
    CutError
        If the segment returns anything but one tensor, or changes a buffer that is not
        BatchNorm's.
    """
    segment.train(training)
    parameters = {
        name: weights[name].detach().requires_grad_(training and parameter.requires_grad)
        for name, parameter in segment.parameters.items()
    }
    # In training mode a layer may write into its buffers. It gets copies: the caller's
    # change once per accepted step, and not here.
    buffers = {
        name: weights[name].clone() if training else weights[name] for name in segment.buffers
    }
    args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    first = next(iter([*args, *kwargs.values()]))
    # Most segments have neither statistics nor constants, which are buffers.
    recorded: AbstractContextManager[Moments] = nullcontext({})
    unchanged: AbstractContextManager[None] = nullcontext()
    if buffers:
        recorded = record_moments(segment.module)
        unchanged = _constant_buffers(segment.module, buffers)
    with (
        torch.set_grad_enabled(training),
        recorded as moments,
        unchanged,
        seeded(seed, first.device),
    ):
        tensors = {**parameters, **buffers}
        output = functional_call(
            segment.module, tensors, args, kwargs, tie_weights=segment.is_tied
        )
    if not isinstance(output, Tensor):
        raise CutError(
            f"the client segment returned a {type(output).__name__}; the activations are "
            "one tensor. Cut where a single tensor crosses."
        )
    return ClientPass(
        activations=output.detach().contiguous(),
        moments=moments,
        _output=output,
        _parameters={name: p for name, p in parameters.items() if p.requires_grad},
    )


@contextmanager
def _constant_buffers(segment: nn.Module, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse a pass that writes into, or replaces, a buffer other than BatchNorm's."""
    constant = set(buffers) - running_statistics(segment)
    if not constant:
        yield
        return
    before = {name: (buffers[name], buffers[name]._version) for name in constant}
    changed: list[str] = []

    # A hook sees the buffers while they are still in their places: a layer that assigns a
    # new tensor would leave no trace afterwards.
    def look(*_: object) -> None:
        for name, buffer in segment.named_buffers():
            if name in constant and not _is_same(buffer, *before[name]):
                changed.append(name)

    hook = segment.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    if changed:
        raise CutError(
            f"a forward pass of the client segment changes its buffers {changed}; only "
            "BatchNorm's running statistics can be merged over clients. Put that layer behind "
            "the cut, or keep the buffer constant in training."
        )


def _is_same(buffer: Tensor, given: Tensor, version: int) -> bool:
    return buffer is given and buffer._version == version
