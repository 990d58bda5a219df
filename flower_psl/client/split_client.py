"""A device: its data, its segment, and its answers to the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flower_psl.client.batch_source import BatchSource, CollateFn, MapDataset
from flower_psl.client.decode_request import decode_gradient, decode_weights
from flower_psl.client.fused_clients import FusablePart, FusedClients
from flower_psl.client.local_segment import OptimizerFn
from flower_psl.client.local_training import LocalTraining
from flower_psl.client.own_examples import OwnExamples
from flower_psl.client.state_folder import StateFolder
from flower_psl.client.stopwatch import Stopwatch
from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.split import ClientPass, ModuleIndex, client_pass, keep_freed_memory
from flower_psl.wire import (
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
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

    With ``client_sync="step"`` it holds no optimizer and no weights of its own: a request
    brings the weights that it needs. All it keeps from a forward pass to the backward pass
    that follows is the autograd graph, which a recomputed forward pass replaces bit for bit.
    With ``"round"`` and ``"none"`` it has both.

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
    optimizer_fn : callable, optional
        Makes the optimizer of the segment's parameters, which a device has with
        ``client_sync="round"`` (a new one in every round) and ``"none"`` (one for the run).
    state_dir : str or Path, optional
        A folder that outlives the process. At a server's checkpoint the device saves there
        what it trains by itself, so that a run with ``client_sync="round"`` and ``"none"``
        can be resumed (docs/checkpoints.md). Clients may share it.
    device : torch.device or str
        Where the segment computes.

    Attributes
    ----------
    local : LocalTraining
        What the device trains by itself.

    Raises
    ------
    ConfigError
        If `segment` is not a module, a dataset is not map-style, or `optimizer_fn` is no
        function.

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
        optimizer_fn: OptimizerFn | None = None,
        state_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(segment, nn.Module):
            raise ConfigError(
                f"segment is a {type(segment).__name__}; it must be the client's module, such "
                "as cut(model, at=...).client"
            )
        keep_freed_memory()
        self._segment = ModuleIndex(segment)
        self._tensors = {**self._segment.parameters, **self._segment.buffers}
        self._device = torch.device(device)
        self._examples = OwnExamples(
            BatchSource(train_set, collate_fn),
            None if test_set is None else BatchSource(test_set, collate_fn),
            self._device,
        )
        self.local = LocalTraining(segment, optimizer_fn, self._device, self._pass)
        self._folder = StateFolder(None if state_dir is None else Path(state_dir))
        self._pending: _Pending | None = None
        self._answered: StepReply | None = None

    @classmethod
    def fuse(cls, clients: Mapping[int, object]) -> FusedClients:
        """Let clients of one process answer the training requests of a run together.

        Parameters
        ----------
        clients : mapping of int to SplitClient
            Clients with one segment, and tensors as training data, by client key.

        Raises
        ------
        ConfigError
            If one is not a `SplitClient`, or does not fit as `FusedClients` says.
        """
        parts = {}
        for key, client in clients.items():
            if not isinstance(client, cls):
                raise ConfigError(
                    f"client {key} is a {type(client).__name__}; clients that run as one are all "
                    "a SplitClient. Leave out fuse_clients."
                )
            parts[key] = FusablePart(
                client._segment,
                client._device,
                client._examples.train.is_tensors,
                client._examples.load,
            )
        return FusedClients(parts)

    def describe(self, client_key: int | None = None) -> DescribeReply:
        """Describe the data and the segment; the server compares and plans with it."""
        train, test = self._examples.train, self._examples.test
        return DescribeReply(
            client_key=client_key,
            num_examples=len(train),
            num_test_examples=0 if test is None else len(test),
            segment=segment_spec(self._tensors.items()),
            has_optimizer=self.local.possible,
            has_segment=self.local.weights is not None,
            keeps_state=self._folder.possible,
        )

    def holds(self, step: StepId) -> bool:
        """Tell whether a backward pass for this step needs no weights."""
        return any(
            known is not None and known.id == step for known in (self._pending, self._answered)
        )

    def prepare(self, step: StepId) -> None:
        """Load the batch of a step before its forward request comes.

        Raises
        ------
        ProtocolError
            If it asks for examples that the device does not have.
        """
        self._examples.prepare(step)

    def forget(self) -> None:
        """Free what is kept of a step; a backward pass that still comes recomputes it."""
        self._pending = None
        self._answered = None
        self.local.forget()

    def handle(self, request: StepRequest) -> StepReply:
        """Answer a request.

        The same request, asked again, gets the same answer.

        Raises
        ------
        ProtocolError
            If it asks for examples that the device does not have, or for a backward pass
            whose forward pass is unknown here.
        ConfigError
            If it lets the device train by itself, and there is no `optimizer_fn`.
        ClientError, CheckpointError, OSError
            If what the device trains cannot be saved or restored.
        """
        watch = Stopwatch()
        match request.phase:
            case Phase.BACKWARD:
                return self._backward(request, watch)
            case Phase.SETTLE | Phase.COLLECT:
                return self.local.finish(request, watch)
            case Phase.SAVE | Phase.RESTORE:
                return self._folder.answer(request, self.local)
            case Phase.TRAIN:
                computed, labels = self.local.go_on(request, watch)
            case _:
                computed, labels = self._forward(request, watch)
        if request.phase is Phase.FORWARD:
            self._pending = _Pending(request.id, computed)
            # Another run with the same seed asks for the same id, with other weights.
            self._answered = None
        # A device that trains by itself keeps its running statistics by itself.
        moments = {} if request.phase is Phase.TRAIN else computed.moments
        # Never at random: evaluation and a repeated forward pass see the same values.
        with watch.encoding():
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
            moments={name: moment.cpu() for name, moment in moments.items()},
            compute_s=watch.compute_s,
            encode_s=watch.encode_s,
        )

    def _backward(self, request: StepRequest, watch: Stopwatch) -> StepReply:
        if self._answered is not None and self._answered.id == request.id:
            return self._answered
        if self._pending is not None and self._pending.id == request.id:
            computed = self._pending.computed
        elif request.weights:
            computed, _ = self._forward(request, watch)
        else:
            raise ProtocolError(
                f"{request.id}: a gradient came for a forward pass that is not known here; the "
                "device has restarted without its state. Let the server repeat the step."
            )
        with watch.encoding():
            cut_gradient = decode_gradient(request, computed.activations)
        gradients = computed.backward(cut_gradient)
        self._pending = None
        with watch.encoding():
            encoded = encode_parameters(
                {name: gradient.cpu() for name, gradient in gradients.items()},
                request.encodings.gradients,
                gradients,
                partial(derive_seed, request.id.seed, Purpose.ENCODING, *request.id.position),
            )
        self._answered = StepReply(
            phase=request.phase,
            id=request.id,
            gradients=encoded,
            unused=computed.unused(gradients),
            compute_s=watch.compute_s,
            encode_s=watch.encode_s,
        )
        return self._answered

    def _forward(self, request: StepRequest, watch: Stopwatch) -> tuple[ClientPass, Tensor]:
        training = request.phase is not Phase.EVALUATE
        weights = None if training or request.weights else self.local.weights
        if weights is None:
            with watch.encoding():
                weights = decode_weights(request, self._tensors)
        return self._pass(request.id, weights, training=training)

    def _pass(
        self, step: StepId, weights: Mapping[str, Tensor], *, training: bool = True
    ) -> tuple[ClientPass, Tensor]:
        batch = self._examples.take(step, training=training)
        computed = client_pass.forward(
            self._segment,
            {name: tensor.to(self._device) for name, tensor in weights.items()},
            batch.inputs,
            training=training,
            seed=batch.seed,
        )
        return computed, batch.labels
