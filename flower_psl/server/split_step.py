"""What steps of every kind share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.server.learner import Learner
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import FIRST_PLAN, StepPlan
from flower_psl.split import LossFn, check_moments
from flower_psl.telemetry import StepRecord
from flower_psl.transport import Transport
from flower_psl.wire import (
    EncodedBatch,
    Encodings,
    StepId,
    StepReply,
    StepRequest,
    check_batch,
    decode_reply,
    encode_batch,
)


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """What steps of a run are taken with.

    Attributes
    ----------
    transport : Transport
        What reaches the clients.
    nodes : mapping of int to int
        Where each client key is reached.
    learner : Learner
        The model and the server's optimizer.
    loss_fn : callable
        ``loss_fn(outputs, labels)``, a scalar.
    seed : int
        The run's seed.
    device : torch.device
        Where the server segment computes.
    encodings : Encodings
        How tensors travel.
    """

    transport: Transport
    nodes: Mapping[int, int]
    learner: Learner
    loss_fn: LossFn
    seed: int
    device: torch.device
    encodings: Encodings = field(default_factory=Encodings)

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds: none."""
        return frozenset()

    @property
    def _forward(self) -> ServerForward:
        return ServerForward(loss_fn=self.loss_fn, seed=self.seed)

    def _ids(self, plan: StepPlan) -> list[StepId]:
        """Return each client's part of a step, in client order."""
        return [
            StepId(
                seed=self.seed,
                server_round=plan.server_round,
                plan=FIRST_PLAN,
                step=plan.step,
                client_key=key,
                start=plan.starts[key],
                batch_size=batch_size,
            )
            for key, batch_size in plan.batch_sizes.items()
        ]

    def _announce(self, ahead: StepPlan | None) -> None:
        """Let clients load their part of the step after this one."""
        if ahead is not None:
            self.transport.announce({self.nodes[id.client_key]: id for id in self._ids(ahead)})

    def _record(
        self,
        plan: StepPlan,
        loss: float,
        clock: PhaseClock,
        *exchanges: tuple[Mapping[int, StepRequest], Mapping[int, StepReply]],
    ) -> StepRecord:
        """Return the record of a step, of its exchanges' requests and replies."""
        requests = [request for asked, _ in exchanges for request in asked.values()]
        replies = [reply for _, answers in exchanges for reply in answers.values()]
        return StepRecord(
            server_round=plan.server_round,
            step=plan.step,
            loss=loss,
            effective_batch_size=sum(plan.batch_sizes.values()),
            clients=plan.batch_sizes,
            bytes_up=sum(reply.payload_bytes for reply in replies),
            bytes_down=sum(request.payload_bytes for request in requests),
            seconds=clock.seconds(*(answers for _, answers in exchanges)),
            client_seconds=_client_seconds(replies),
        )

    def _decoded(self, replies: Mapping[int, StepReply]) -> list[StepReply]:
        """Return the replies with the values that the clients encoded."""
        return [
            decode_reply(reply, self.encodings, self.learner.client_parameters)
            for reply in replies.values()
        ]

    def _global_batch(self, replies: Sequence[StepReply]) -> tuple[list[Tensor], Tensor]:
        """Return each client's activations, and all labels, checked, in client order."""
        batches = {reply.id: check_batch(reply) for reply in replies}
        for reply in replies:
            check_moments(self.learner.model.client, reply.moments, str(reply.id))
        activations = {step_id: batch[0] for step_id, batch in batches.items()}
        labels = {step_id: batch[1] for step_id, batch in batches.items()}
        _check_alike(activations, "activations")
        _check_alike(labels, "labels")
        return (
            [part.to(self.device) for part in activations.values()],
            torch.cat(list(labels.values())).to(self.device),
        )


class StepTaker(Protocol):
    """What takes the steps of a run, whatever becomes of the client segments."""

    @property
    def learner(self) -> Learner:
        """The model and the server's optimizer."""

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds."""

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepRecord:
        """Take one step; the last of a round has none ahead."""


def _check_alike(parts: Mapping[StepId, Tensor], name: str) -> None:
    """Refuse tensors that cannot be one batch, and name those that most others differ from."""
    kinds = {step_id: (tensor.shape[1:], tensor.dtype) for step_id, tensor in parts.items()}
    (usual, _), *others = Counter(kinds.values()).most_common()
    if not others:
        return
    odd = next(step_id for step_id, kind in kinds.items() if kind != usual)
    like_most = next(step_id for step_id, kind in kinds.items() if kind == usual)
    (shape, dtype), (usual_shape, usual_dtype) = kinds[odd], usual
    raise ProtocolError(
        f"{odd}: its {name} are {dtype} {tuple(shape)} an example, but {usual_dtype} "
        f"{tuple(usual_shape)} at client {like_most.client_key}; all clients must agree. Give "
        "them the same model, transforms and label type."
    )


def _client_seconds(replies: Sequence[StepReply]) -> dict[int, float]:
    """Return how long each client was waited for, by client key."""
    seconds: dict[int, float] = {}
    for reply in replies:
        key = reply.id.client_key
        seconds[key] = seconds.get(key, 0.0) + reply.elapsed_s
    return seconds


def encode_gradient(step: StepId, gradient: Tensor, encodings: Encodings) -> EncodedBatch:
    """Return a client's cut gradient in a step as it travels."""
    seed = partial(derive_seed, step.seed, Purpose.ENCODING, *step.position)
    return encode_batch("gradient", gradient.cpu(), encodings.gradients, seed)
