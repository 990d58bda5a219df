"""A device: its data, its segment, and its answers to the server."""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flower_psl.client.batch_source import BatchSource, CollateFn, MapDataset
from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.sampling import Purpose, derive_seed, generator
from flower_psl.split import ClientPass, client_pass, seeded
from flower_psl.wire import (
    DescribeReply,
    EncodedBatch,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    decode_batch,
    decode_parameters,
    encode_batch,
    encode_parameters,
    segment_spec,
)


@dataclass(frozen=True)
class _Pending:
    """A forward pass that waits for its gradient."""

    id: StepId
    computed: ClientPass


class SplitClient:
    """A device's data and its part of the model.

    It holds no optimizer and no weights of its own: a request brings the weights that it
    needs. All it keeps from a forward pass to the backward pass that follows is the
    autograd graph, which a recomputed forward pass replaces bit for bit.

    Parameters
    ----------
    segment : nn.Module
        The client segment, as ``cut(model, at=...).client``. It may be on the meta device.
    train_set : map-style dataset
        ``(input, label)`` pairs; an input is a tensor, or a tuple or dict of tensors.
    test_set : map-style dataset, optional
        The same for split evaluation on this device.
    collate_fn : callable, optional
        Makes ``(inputs, labels)`` of a list of examples of either dataset.
    device : torch.device or str
        Where the segment computes.

    Raises
    ------
    ConfigError
        If `segment` is not a module, or a dataset is not map-style.

    Notes
    -----
    Augmentation that draws from torch's generator is repeatable; draws from Python's or
    NumPy's global generators are not.
    """

    def __init__(
        self,
        segment: nn.Module,
        train_set: MapDataset,
        test_set: MapDataset | None = None,
        *,
        collate_fn: CollateFn | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(segment, nn.Module):
            raise ConfigError(
                f"segment is a {type(segment).__name__}; it must be the client's module, such "
                "as cut(model, at=...).client"
            )
        self._segment = segment
        self._tensors = dict([*segment.named_parameters(), *segment.named_buffers()])
        self._train = BatchSource(train_set, collate_fn)
        self._test = None if test_set is None else BatchSource(test_set, collate_fn)
        self._device = torch.device(device)
        self._pending: _Pending | None = None
        self._answered: StepReply | None = None
        self._permutation: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    def describe(self, client_key: int | None = None) -> DescribeReply:
        """Describe the data and the segment; the server compares and plans with it."""
        return DescribeReply(
            client_key=client_key,
            num_examples=len(self._train),
            num_test_examples=0 if self._test is None else len(self._test),
            segment=segment_spec(self._tensors.items()),
        )

    def holds(self, step: StepId) -> bool:
        """Tell whether a backward pass for this step needs no weights."""
        return any(
            known is not None and known.id == step for known in (self._pending, self._answered)
        )

    def forget(self) -> None:
        """Free what is kept of a step; a backward pass that still comes recomputes it."""
        self._pending = None
        self._answered = None

    def handle(self, request: StepRequest) -> StepReply:
        """Answer a request.

        The same request, asked again, gets the same answer.

        Raises
        ------
        ProtocolError
            If it asks for examples that the device does not have, or for a backward pass
            whose forward pass is unknown here.
        """
        if request.phase is Phase.BACKWARD:
            return self._backward(request)
        started = time.perf_counter()
        computed, labels = self._forward(request)
        if request.phase is Phase.FORWARD:
            self._pending = _Pending(request.id, computed)
            # Another run with the same seed asks for the same id, with other weights.
            self._answered = None
        # Never at random: evaluation and a repeated forward pass see the same values.
        encoded = encode_batch(
            "activations", computed.activations.cpu(), request.encodings.activations, None
        )
        return StepReply(
            phase=request.phase,
            id=request.id,
            activations=encoded.values,
            activation_dtype=computed.activations.dtype,
            extras=encoded.extras,
            labels=labels,
            moments={name: moment.cpu() for name, moment in computed.moments.items()},
            compute_s=time.perf_counter() - started,
        )

    def _backward(self, request: StepRequest) -> StepReply:
        if self._answered is not None and self._answered.id == request.id:
            return self._answered
        started = time.perf_counter()
        if self._pending is not None and self._pending.id == request.id:
            computed = self._pending.computed
        elif request.weights:
            computed, _ = self._forward(request)
        else:
            raise ProtocolError(
                f"{request.id}: a gradient came for a forward pass that is not known here; the "
                "device has restarted without its state. Let the server repeat the step."
            )
        gradients = computed.backward(self._cut_gradient(request, computed.activations))
        self._pending = None
        self._answered = StepReply(
            phase=request.phase,
            id=request.id,
            gradients=encode_parameters(
                {name: gradient.cpu() for name, gradient in gradients.items()},
                request.encodings.gradients,
                gradients,
                partial(derive_seed, request.id.seed, Purpose.ENCODING, *request.id.position),
            ),
            unused=tuple(
                name
                for name, parameter in self._segment.named_parameters()
                if parameter.requires_grad and name not in gradients
            ),
            compute_s=time.perf_counter() - started,
        )
        return self._answered

    def _cut_gradient(self, request: StepRequest, activations: Tensor) -> Tensor:
        """Return a request's gradient, decoded, if it belongs to the activations."""
        gradient = request.gradient
        if gradient is None or gradient.shape != activations.shape:
            shape = None if gradient is None else tuple(gradient.shape)
            raise ProtocolError(
                f"{request.id}: a cut gradient of shape {shape} for activations of shape "
                f"{tuple(activations.shape)}; both must agree"
            )
        return decode_batch(
            "gradient",
            EncodedBatch(gradient, request.extras),
            request.encodings.gradients,
            activations.dtype,
            str(request.id),
        ).to(self._device)

    def _forward(self, request: StepRequest) -> tuple[ClientPass, Tensor]:
        step = request.id
        training = request.phase is not Phase.EVALUATE
        source = self._train if training else self._test
        available = 0 if source is None else len(source)
        end = step.start + step.batch_size
        if source is None or end > available:
            raise ProtocolError(
                f"{step}: examples {step.start} to {end} were asked for, of {available} in the "
                f"{'training' if training else 'test'} data. The data set must keep its size "
                "during a run."
            )
        if missing := [name for name in self._tensors if name not in request.weights]:
            raise ProtocolError(
                f"{step}: a forward request without the weights {missing}; it must bring all "
                f"{len(self._tensors)} parameters and buffers of the segment. Build the same "
                "model on both sides."
            )
        weights = decode_parameters(
            request.weights, request.encodings.weights, self._tensors, str(step)
        )
        indices = self._order(step)[step.start : end] if training else range(step.start, end)
        # Augmentation and the segment's random layers have streams of their own, so that
        # neither depends on how much the other draws.
        with seeded(derive_seed(step.seed, Purpose.CLIENT_DATA, *step.position)):
            inputs, labels = source.batch(indices, self._device)
        computed = client_pass.forward(
            self._segment,
            {name: tensor.to(self._device) for name, tensor in weights.items()},
            inputs,
            training=training,
            seed=derive_seed(step.seed, Purpose.CLIENT_FORWARD, *step.position),
        )
        return computed, labels

    def _order(self, step: StepId) -> NDArray[np.int64]:
        """Return this round's permutation of the training data."""
        position = (step.seed, step.server_round, step.client_key)
        if self._permutation is None or self._permutation[0] != position:
            draws = generator(step.seed, Purpose.PERMUTATION, step.server_round, step.client_key)
            self._permutation = (position, draws.permutation(len(self._train)))
        return self._permutation[1]
