"""One request and one reply for everything that happens in a step."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.encodings import Encodings
from flower_psl.wire.tensors import payload_bytes

# It is the name of a folder on the device.
_RUN = re.compile(r"[a-z0-9]{0,40}")


class Phase(StrEnum):
    """What a request asks for."""

    FORWARD = "forward"
    BACKWARD = "backward"
    EVALUATE = "evaluate"
    TRAIN = "train"
    SETTLE = "settle"
    COLLECT = "collect"
    SAVE = "save"
    RESTORE = "restore"


class StepId(NamedTuple):
    """One client's part of one step: everything that its examples depend on.

    Attributes
    ----------
    seed : int
        The run's seed.
    server_round, plan, step : int
        The round from 1, its plan from 0, and the step in it from 1.
    client_key : int
        The client.
    start, batch_size : int
        Its examples: positions ``start`` to ``start + batch_size`` of its passes through its
        data, one after the other, each in an order of its own. With D_k examples, position
        p belongs to pass p // D_k and is place p % D_k of its permutation. (In evaluation:
        positions in the test data, in order.)
    """

    seed: int
    server_round: int
    plan: int
    step: int
    client_key: int
    start: int
    batch_size: int

    @property
    def position(self) -> tuple[int, int, int, int]:
        """Where in the run the random draws of this part belong."""
        return (self.server_round, self.plan, self.step, self.client_key)

    def __str__(self) -> str:
        """Return, for example, ``client 3, round 2, step 40``."""
        return f"client {self.client_key}, round {self.server_round}, step {self.step}"


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """What the server asks of one client; tensors are encoded, as they travel.

    Attributes
    ----------
    phase : Phase
        A forward pass in training, the backward pass that belongs to it, or a forward
        pass over test data. A client that updates its own segment is asked to train: to
        take the gradient of its step before, and go forward in this one. At the end of a
        round it is asked to settle, to take the gradient that is left, or to collect, to
        return what it has trained, after it took the gradient if one is left. At a
        checkpoint it is asked to save what it trains, and when the run goes on from one, to
        restore that.
    id : StepId
        The step, the client and its examples.
    weights : mapping of str to Tensor
        Parameters and buffers of the client segment. A backward request has none: they
        are those of its forward request. With a request to train, the client starts anew
        from them; without, it goes on with its own, and so it does in evaluation.
    gradient : Tensor or None
        The gradient of the loss by this client's activations in the step `settles`.
    previous : StepId or None
        Train: the client's step before, which the gradient belongs to. Save: the oldest
        step whose saved state the server may still ask for.
    forget : bool
        Whether another step of the client, if one waits for its gradient, was discarded.
    run : str
        Save and restore: the run that the state belongs to, of small letters and digits.
    extras : mapping of str to Tensor
        What decoding the gradient needs besides, such as ``gradient|scale``.
    encodings : Encodings
        How the request's tensors are encoded, and how those of its reply must be.
    """

    phase: Phase
    id: StepId
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    gradient: Tensor | None = None
    previous: StepId | None = None
    forget: bool = False
    run: str = ""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    encodings: Encodings = field(default_factory=Encodings)

    def __post_init__(self) -> None:
        """Refuse a request that no client could answer."""
        of_state = self.phase in (Phase.SAVE, Phase.RESTORE)
        if bool(self.run) is not of_state or (self.run and not _RUN.fullmatch(self.run)):
            raise ProtocolError(
                f"{self.id}: a {self.phase} request of the run {self.run!r}; to save and to "
                "restore name a run by up to 40 small letters and digits, no other request does"
            )
        if min(self.id) < 0 or (self.id.batch_size < 1 and not of_state):
            raise ProtocolError(
                f"{self.id}: a request for {self.id.batch_size} examples from {self.id.start}; no "
                "number may be negative and a client with nothing to give is left alone"
            )
        if self.previous is not None and self.phase not in (Phase.TRAIN, Phase.SAVE):
            raise ProtocolError(
                f"{self.id}: a {self.phase} request names a step before; only a request to train "
                "goes on from one, or to save keeps one"
            )
        settles = self.settles
        if (self.gradient is None) is not (settles is None):
            raise ProtocolError(
                f"{self.id}: a {self.phase} request with"
                f"{'out' if self.gradient is None else ''} a gradient; a gradient belongs to a "
                "step that waits for it: that of a backward or settle request, and the one that a "
                "request to train names as previous. A request to collect may have one, and no "
                "other."
            )
        if self.gradient is not None and settles is not None:
            if self.gradient.dim() == 0 or len(self.gradient) != settles.batch_size:
                raise ProtocolError(
                    f"{settles}: a cut gradient of shape {tuple(self.gradient.shape)} for "
                    f"{settles.batch_size} examples; its first size is the number of examples"
                )

    @property
    def settles(self) -> StepId | None:
        """The step whose gradient is enclosed."""
        match self.phase:
            case Phase.TRAIN:
                return self.previous
            case Phase.BACKWARD | Phase.SETTLE:
                return self.id
            case Phase.COLLECT:
                return None if self.gradient is None else self.id
        return None

    @property
    def payload_bytes(self) -> int:
        """Bytes of the tensors that travel."""
        gradient = [] if self.gradient is None else [self.gradient]
        return payload_bytes([*self.weights.values(), *gradient, *self.extras.values()])


@dataclass(frozen=True, kw_only=True)
class StepReply:
    """What one client answers; tensors are encoded, as they travel.

    Attributes
    ----------
    phase : Phase
        The phase of the request.
    id : StepId
        The id of the request.
    activations : Tensor or None
        Forward, train and evaluate: the cut layer's output, ``(batch_size, ...)``.
    activation_dtype : torch.dtype or None
        What the activations were before they were encoded.
    extras : mapping of str to Tensor
        What decoding the activations needs besides, such as ``activations|scale``.
    labels : Tensor or None
        Forward, train and evaluate: ``(batch_size, ...)``.
    gradients : mapping of str to Tensor
        Backward: gradient by parameter.
    unused : tuple of str
        Backward: trainable parameters that the activations do not depend on.
    moments : mapping of str to Tensor
        Forward: moments of the inputs of BatchNorm layers, see `split.batch_norm`.
    weights : mapping of str to Tensor
        Collect: the trainable parameters and BatchNorm's running statistics, never encoded.
    compute_s, encode_s : float
        Seconds that the client computed, and that it encoded and decoded.
    exchange_s : float or None
        Seconds from the request to this reply, where a transport measured them. They do not
        travel.
    """

    phase: Phase
    id: StepId
    activations: Tensor | None = None
    activation_dtype: torch.dtype | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    compute_s: float = 0.0
    encode_s: float = 0.0
    exchange_s: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds that the client worked."""
        return self.compute_s + self.encode_s

    @property
    def elapsed_s(self) -> float:
        """Seconds that the server waited for the client."""
        return self.busy_s if self.exchange_s is None else self.exchange_s

    @property
    def payload_bytes(self) -> int:
        """Bytes of the tensors that travel."""
        batch = [tensor for tensor in (self.activations, self.labels) if tensor is not None]
        groups = (self.extras, self.gradients, self.moments, self.weights)
        return payload_bytes([*batch, *(part for group in groups for part in group.values())])


def check_belongs(reply: StepReply, request: StepRequest) -> None:
    """Refuse a reply to another request.

    Raises
    ------
    ProtocolError
        If phase or id differ.
    """
    if (reply.phase, reply.id) != (request.phase, request.id):
        raise ProtocolError(
            f"{request.id}: asked for {request.phase} {tuple(request.id)}, got an answer to "
            f"{reply.phase} {tuple(reply.id)}; a device must echo the phase and id of "
            "the request that it answers"
        )
