"""Training in which a device updates its segment by itself."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flower_psl.client.decode_request import decode_gradient, decode_weights
from flower_psl.client.local_segment import LocalSegment, OptimizerFn
from flower_psl.client.stopwatch import Stopwatch
from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.split import ClientPass
from flower_psl.wire import Phase, StepId, StepReply, StepRequest

ForwardFn = Callable[[StepId, Mapping[str, Tensor]], tuple[ClientPass, Tensor]]


class LocalTraining:
    """A device's part in training with ``client_sync="round"`` and ``"none"``.

    A step goes forward and waits. Its gradient comes with the request for the device's next
    step, or at the end of the round, and the device's own optimizer takes the step.

    Parameters
    ----------
    segment : nn.Module
        The client segment, a description.
    optimizer_fn : callable or None
        Makes the optimizer of the segment's parameters.
    device : torch.device
        Where the segment computes.
    forward : callable
        Returns the forward pass of a step with given weights, and its labels. A repeated call
        gives the same bits.

    Raises
    ------
    ConfigError
        If `optimizer_fn` is no function.
    """

    def __init__(
        self,
        segment: nn.Module,
        optimizer_fn: OptimizerFn | None,
        device: torch.device,
        forward: ForwardFn,
    ) -> None:
        if optimizer_fn is not None and not callable(optimizer_fn):
            raise ConfigError(
                f"optimizer_fn is a {type(optimizer_fn).__name__}; it must be a function of the "
                "parameters, such as lambda params: torch.optim.SGD(params, lr=0.1)"
            )
        self._segment = segment
        self._tensors = dict([*segment.named_parameters(), *segment.named_buffers()])
        self._given_optimizer_fn = optimizer_fn
        self._device = device
        self._forward = forward
        self._own: LocalSegment | None = None
        self._computed: ClientPass | None = None

    @property
    def possible(self) -> bool:
        """Whether the device has an optimizer."""
        return self._given_optimizer_fn is not None

    @property
    def weights(self) -> Mapping[str, Tensor] | None:
        """The device's own parameters and buffers, if it has begun to train."""
        return None if self._own is None else self._own.tensors()

    @property
    def state(self) -> bytes | None:
        """All that another process needs to go on; None before the training began.

        What is set takes the place of what was there.
        """
        return None if self._own is None else self._own.state()

    @state.setter
    def state(self, state: bytes | None) -> None:
        self.forget()
        self._own = None
        if state is not None:
            self._own = LocalSegment.resume(
                self._segment, state, self._optimizer_fn(), self._device
            )

    def forget(self) -> None:
        """Free the autograd graph of the step that waits; it will be computed again."""
        self._computed = None

    def go_on(self, request: StepRequest, watch: Stopwatch) -> tuple[ClientPass, Tensor]:
        """Take in what a request to train brings, and go forward in its step.

        Raises
        ------
        ConfigError
            If the device has no optimizer.
        ProtocolError
            If the request does not follow the one before it.
        """
        own = self._settled(request, watch)
        if own.waiting not in (None, request.id):
            raise ProtocolError(
                f"{request.id}: {own.waiting} still waits for its gradient, which must come "
                "first. Let the server send it with its next request."
            )
        own.waiting = request.id
        self._computed, labels = self._forward(request.id, own.tensors())
        return self._computed, labels

    def finish(self, request: StepRequest, watch: Stopwatch) -> StepReply:
        """Take the gradient that is left of a round; return what was trained if asked to.

        Raises
        ------
        ConfigError, ProtocolError
            As `go_on`.
        """
        own = self._settled(request, watch)
        return StepReply(
            phase=request.phase,
            id=request.id,
            weights=own.trained() if request.phase is Phase.COLLECT else {},
            compute_s=watch.compute_s,
            encode_s=watch.encode_s,
        )

    def _settled(self, request: StepRequest, watch: Stopwatch) -> LocalSegment:
        """Return the device's own segment, with what a request brings taken in.

        A gradient is taken once, however often it is sent, and that of a discarded step never.
        """
        if request.weights:
            with watch.encoding():
                weights = decode_weights(request, self._tensors)
            self.forget()
            self._own = LocalSegment(self._segment, weights, self._optimizer_fn(), self._device)
        own, step = self._own, request.settles
        if own is None:
            raise ProtocolError(
                f"{request.id}: a {request.phase} request without weights, but the device has "
                "none of its own; it has restarted without its state. Start the run again."
            )
        if request.forget and own.waiting != step:
            own.waiting = None
            self.forget()
        if step is not None and step != own.settled:
            if own.waiting != step:
                raise ProtocolError(
                    f"{step}: a gradient came, but the device waits for that of "
                    f"{own.waiting or 'no step'}; it has lost its state, or missed a request. "
                    "Start the run again."
                )
            computed = self._computed or self._forward(step, own.tensors())[0]
            with watch.encoding():
                gradient = decode_gradient(request, computed.activations)
            own.settle(step, computed, gradient)
            self.forget()
        return own

    def _optimizer_fn(self) -> OptimizerFn:
        if self._given_optimizer_fn is None:
            raise ConfigError(
                "this SplitClient has no optimizer_fn; with client_sync='round' and 'none' a "
                "device updates its segment by itself. Make it with SplitClient(..., "
                "optimizer_fn=lambda params: torch.optim.SGD(params, lr=0.1))."
            )
        return self._given_optimizer_fn
