"""What the server learns: the whole model or its own segment, and one optimizer over it."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flower_psl.split import ModuleIndex, SplitModel, load_tensors, update_running_statistics
from flower_psl.storage import State, check_alike, check_tensors, load_optimizer_state
from flower_psl.wire import encode_parameters

OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerFn = Callable[[Optimizer, int], LRScheduler]


class Learner:
    """The model and an optimizer of all that the server updates.

    That is the whole model, updated once a step as in centralized training, or the server
    segment alone.

    Parameters
    ----------
    model : SplitModel
        The model, on the device that the server computes on. It is changed.
    optimizer_fn : callable
        Makes the optimizer of the parameters.
    lr_scheduler_fn : callable, optional
        Makes a scheduler of the optimizer and the run's number of steps; it advances once
        a step.
    total_steps : int
        Steps of the run.
    max_grad_norm : float, optional
        Bound on the norm of their gradient.
    server_only : bool
        Whether these are the server segment's, and clients update theirs by themselves.
    """

    def __init__(
        self,
        model: SplitModel,
        optimizer_fn: OptimizerFn,
        lr_scheduler_fn: LRSchedulerFn | None,
        *,
        total_steps: int,
        max_grad_norm: float | None,
        server_only: bool = False,
    ) -> None:
        self.model = model
        self.client, self.server = ModuleIndex(model.client), ModuleIndex(model.server)
        self._parameters = list((model.server if server_only else model).parameters())
        self.client_parameters = {
            name: parameter
            for name, parameter in self.client.parameters.items()
            if parameter.requires_grad
        }
        self._optimizer_fn = optimizer_fn
        self._optimizer = optimizer_fn(iter(self._parameters))
        self._scheduler = (
            None if lr_scheduler_fn is None else lr_scheduler_fn(self._optimizer, total_steps)
        )
        self._max_grad_norm = max_grad_norm
        self._steps_left = total_steps

    def client_weights(self, encoding: str = "raw") -> Mapping[str, Tensor]:
        """Return the client segment's parameters and buffers, as they travel to clients.

        Raw, they are the model's own tensors where it lies on the CPU, not copies.
        """
        return encode_parameters(
            {name: tensor.cpu() for name, tensor in self.client.tensors.items()},
            encoding,
            self.client.parameters,
        )

    def start_step(self) -> None:
        """Drop the gradients of the step before."""
        # Of all parameters, also those that the optimizer was not given: clipping sees them.
        for parameter in self._parameters:
            parameter.grad = None

    def update(
        self,
        client_gradients: Sequence[Mapping[str, Tensor]],
        client_moments: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Take the step: sum the clients' gradients, clip, update, advance the schedule.

        The server segment's gradients are in place already.

        Parameters
        ----------
        client_gradients : sequence of mappings
            Gradient by parameter, one mapping a client, in client order. Their order is
            that of the floating-point sum.
        client_moments : sequence of mappings
            Moments of BatchNorm inputs, one mapping a client.
        """
        for name, parameter in self.client_parameters.items():
            parts = [gradients[name] for gradients in client_gradients if name in gradients]
            if parts:
                parameter.grad = _sum(parts).to(parameter.device)
        self.take_step()
        self.advance_schedule()
        if any(client_moments):
            update_running_statistics(self.model.client, client_moments)

    def take_step(self) -> None:
        """Clip the gradients that are in place, and update."""
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()

    def advance_schedule(self) -> None:
        """Let the learning rates go on, for as many steps as the run was to have.

        Where clients fail a run can have more; the learning rates then stay what they are.
        """
        if self._scheduler is not None and self._steps_left > 0:
            self._scheduler.step()
            self._steps_left -= 1

    def state(self) -> State:
        """Return the segments, the optimizer and its schedule; tensors are no copies."""
        return {
            "client": self.client.tensors,
            "server": self.server.tensors,
            "optimizer": self._optimizer.state_dict(),
            "schedule": None if self._scheduler is None else self._scheduler.state_dict(),
            "steps_left": self._steps_left,
        }

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, in tensors of its own."""
        for name in ("client", "server"):
            segment: ModuleIndex = getattr(self, name)
            load_tensors(segment.module, check_tensors(state[name], segment.tensors))
        if self._scheduler is not None:
            check_alike(state["schedule"], self._scheduler.state_dict(), "schedule")
            self._scheduler.load_state_dict(state["schedule"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self._steps_left = int(state["steps_left"])

    @property
    def recipe(self) -> dict[str, str]:
        """What the optimizer and its schedule are, beside their state, by name."""
        scheduler = "none" if self._scheduler is None else type(self._scheduler).__name__
        settings = {f"optimizer's {name}": str(v) for name, v in self._optimizer.defaults.items()}
        return {"optimizer": type(self._optimizer).__name__, **settings, "schedule": scheduler}

    def server_copy(self) -> "Learner":
        """Return a learner of a copy of the server segment alone, with a new optimizer.

        It has no learning-rate schedule.
        """
        model = SplitModel(self.model.client, copy.deepcopy(self.model.server), at=self.model.at)
        return Learner(
            model,
            self._optimizer_fn,
            None,
            total_steps=0,
            max_grad_norm=self._max_grad_norm,
            server_only=True,
        )


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
