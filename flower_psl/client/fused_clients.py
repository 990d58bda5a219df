"""The clients of one process, their parts of a step computed as one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from flower_psl.client.own_examples import Batch
from flower_psl.client.stopwatch import Stopwatch
from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.split import ClientPass, ModuleIndex, check_example_wise, client_pass
from flower_psl.wire import Phase, StepId, StepReply, StepRequest

# Nothing in a segment that passes our check draws from the generator.
_ANY_SEED = 0


class FusablePart(NamedTuple):
    """What one client brings.

    Attributes
    ----------
    segment : ModuleIndex
        Its segment.
    device : torch.device
        Where it computes.
    is_tensors : bool
        Whether its training data are plain tensors.
    load : callable
        Returns its part of a step.
    """

    segment: ModuleIndex
    device: torch.device
    is_tensors: bool
    load: Callable[[StepId], Batch]


class FusedClients:
    """Clients with one segment, which answer the training requests of a run together.

    Their examples make one batch, which goes through the segment once in each direction. The
    replies are those that the clients would give one by one, but for two things: the first
    has the sum of all gradients, while the others call every parameter unused; and the
    seconds of a pass are shared out by the number of examples.

    Parameters
    ----------
    parts : mapping of int to FusablePart
        The clients by client key.

    Raises
    ------
    ConfigError
        If a client's data may be drawn at random, or its segment or device is not that of
        the others.
    """

    def __init__(self, parts: Mapping[int, FusablePart]) -> None:
        first, model = next(iter(parts.items()))
        layers = str(model.segment.module)
        for key, part in parts.items():
            if not part.is_tensors:
                raise ConfigError(
                    f"client {key}: its training data are not a TensorDataset without a "
                    "collate_fn; any other dataset may draw random numbers, which one pass for "
                    "all clients cannot repeat. Leave out fuse_clients, or make tensors of the "
                    "data first."
                )
            if (str(part.segment.module), part.device) != (layers, model.device):
                raise ConfigError(
                    f"client {key}: its segment, on {part.device}, is not that of client {first}, "
                    f"on {model.device}; one pass for all clients needs one segment on one "
                    "device. Build the same model for all of them, or leave out fuse_clients."
                )
        self._loads = {key: part.load for key, part in parts.items()}
        self._segment, self._device = model.segment, model.device
        self._trainable = tuple(
            name for name, parameter in self._segment.parameters.items() if parameter.requires_grad
        )
        self._is_checked = False
        self._pending: tuple[list[StepId], ClientPass] | None = None

    def handle(self, requests: Sequence[StepRequest]) -> list[StepReply]:
        """Answer the requests of one exchange of training, in their order.

        Raises
        ------
        ConfigError
            If a layer of the segment mixes examples or draws random numbers.
        ProtocolError
            If a client does not have the examples, or backward requests are not those of
            the forward pass before them.
        """
        if requests[0].phase is Phase.BACKWARD:
            return self._backward(requests)
        return self._forward(requests)

    def _forward(self, requests: Sequence[StepRequest]) -> list[StepReply]:
        watch = Stopwatch()
        ids = [request.id for request in requests]
        batches = [self._loads[step.client_key](step) for step in ids]
        parts: Any = [batch.inputs for batch in batches]  # tensors, as has been looked at
        inputs, weights = torch.cat(parts), requests[0].weights
        if not self._is_checked and len(inputs) > 1:
            check_example_wise(
                self._segment.module,
                weights,
                inputs,
                name="client segment",
                remedy="Leave out fuse_clients, replace the layer, or put it behind the cut",
            )
            self._is_checked = True
        computed = client_pass.forward(
            self._segment,
            {name: tensor.to(self._device) for name, tensor in weights.items()},
            inputs,
            training=True,
            seed=_ANY_SEED,
        )
        self._pending = (ids, computed)
        activations = torch.split(computed.activations.cpu(), [step.batch_size for step in ids])
        seconds = watch.compute_s / len(inputs)
        return [
            StepReply(
                phase=Phase.FORWARD,
                id=step,
                activations=activations_k,
                activation_dtype=activations_k.dtype,
                labels=batch.labels,
                compute_s=seconds * step.batch_size,
            )
            for step, activations_k, batch in zip(ids, activations, batches, strict=True)
        ]

    def _backward(self, requests: Sequence[StepRequest]) -> list[StepReply]:
        watch = Stopwatch()
        ids = [request.id for request in requests]
        pending, self._pending = self._pending, None
        if pending is None or pending[0] != ids:
            raise ProtocolError(
                f"{ids[0]}: a gradient came for {len(ids)} clients whose forward pass is not the "
                "last one here; both requests of a step go to the same clients, in one order. "
                "Give each run clients of its own."
            )
        gradient = torch.cat([r.gradient for r in requests if r.gradient is not None])
        summed = pending[1].backward(gradient.to(self._device))
        gradients = {name: tensor.cpu() for name, tensor in summed.items()}
        seconds = watch.compute_s / len(gradient)
        replies = [
            StepReply(
                phase=Phase.BACKWARD,
                id=step,
                unused=self._trainable,
                compute_s=seconds * step.batch_size,
            )
            for step in ids
        ]
        unused = pending[1].unused(gradients)
        replies[0] = replace(replies[0], gradients=gradients, unused=unused)
        return replies
