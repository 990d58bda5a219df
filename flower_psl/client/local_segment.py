"""A segment that a device updates by itself."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_psl.errors import CheckpointError
from flower_psl.split import (
    ClientPass,
    ModuleIndex,
    trained_tensors,
    update_running_statistics,
)
from flower_psl.storage import check_tensors, load_optimizer_state, pack_state, unpack_state
from flower_psl.wire import StepId

OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]


class LocalSegment:
    """A segment with weights, running statistics and an optimizer of its own.

    Parameters
    ----------
    segment : nn.Module
        The client segment, a description: it may be on the meta device, and is not changed.
    weights : mapping of str to Tensor
        Every parameter and buffer to start from, as `ModuleIndex.tensors` names them; copied.
    optimizer_fn : callable
        Makes the optimizer of the segment's parameters.
    device : torch.device
        Where the segment computes.

    Attributes
    ----------
    settled : StepId or None
        The last step whose gradient was taken.
    waiting : StepId or None
        A step after it that went forward and waits for its gradient.
    """

    def __init__(
        self,
        segment: nn.Module,
        weights: Mapping[str, Tensor],
        optimizer_fn: OptimizerFn,
        device: torch.device,
    ) -> None:
        # Put in the place of the originals while the modules are copied, so that what is
        # tied stays tied and nothing on the meta device is.
        own: dict[int, Tensor] = {
            id(parameter): nn.Parameter(
                weights[name].to(device, copy=True), parameter.requires_grad
            )
            for name, parameter in segment.named_parameters()
        }
        own |= {
            id(buffer): weights[name].to(device, copy=True)
            for name, buffer in segment.named_buffers()
        }
        self._segment = ModuleIndex(copy.deepcopy(segment, {**own}))
        self._optimizer = optimizer_fn(self._segment.module.parameters())
        self.waiting: StepId | None = None
        self.settled: StepId | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers by name, without copies."""
        return self._segment.tensors

    def trained(self) -> dict[str, Tensor]:
        """Return copies of what training changes, on the CPU."""
        trained = trained_tensors(self._segment)
        return {name: tensor.to("cpu", copy=True) for name, tensor in trained.items()}

    def settle(self, step: StepId, computed: ClientPass, gradient: Tensor) -> None:
        """Take a step with the gradient that it waited for.

        Parameters
        ----------
        step : StepId
            The step.
        computed : ClientPass
            Its forward pass.
        gradient : Tensor
            Gradient of this client's own loss by its activations.
        """
        gradients = computed.backward(gradient)
        for name, parameter in self._segment.parameters.items():
            parameter.grad = gradients.get(name)
        self._optimizer.step()
        update_running_statistics(self._segment.module, [computed.moments])
        self.waiting, self.settled = None, step

    def state(self) -> bytes:
        """Return all of it, for `resume` in another process."""
        state = {
            "tensors": self.tensors(),
            "optimizer": self._optimizer.state_dict(),
            "waiting": self.waiting and list(self.waiting),
            "settled": self.settled and list(self.settled),
        }
        return b"".join(pack_state(state))

    @classmethod
    def resume(
        cls, segment: nn.Module, state: bytes, optimizer_fn: OptimizerFn, device: torch.device
    ) -> Self:
        """Return what `state` was asked of.

        Parameters
        ----------
        segment, optimizer_fn, device
            As for the class.
        state : bytes
            The state.

        Raises
        ------
        CheckpointError
            If the bytes are damaged, or the state is that of another segment or optimizer.
        """
        saved = unpack_state(state, "the state of the device")
        own = dict([*segment.named_parameters(), *segment.named_buffers()])
        try:
            tensors = check_tensors(saved["tensors"], own)
            local = cls(segment, tensors, optimizer_fn, device)
            load_optimizer_state(local._optimizer, saved["optimizer"])
            local.waiting, local.settled = (
                None if saved[name] is None else StepId(*map(int, saved[name]))
                for name in ("waiting", "settled")
            )
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the state of the device does not fit its segment and optimizer "
                f"({type(error).__name__}: {error}). Build the same as when it was saved."
            ) from error
        return local
