"""One step: one global batch, forward over the cut and back, one update."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError, PslError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.server.class_labels import check_class_labels
from flower_psl.server.learner import Learner
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.step_plan import StepPlan
from flower_psl.split import LossFn, ServerPass, check_moments, server_pass
from flower_psl.telemetry import StepRecord
from flower_psl.transport import Transport
from flower_psl.wire import (
    Encodings,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_batch,
    check_gradients,
    decode_reply,
    encode_batch,
)

# The plan of a round is made once; a later plan would have a higher number.
_FIRST_PLAN = 0


@dataclass(frozen=True, kw_only=True)
class GlobalStep:
    """Takes steps; holds what all steps of a run share.

    Attributes
    ----------
    transport : Transport
        What reaches the clients.
    nodes : mapping of int to int
        Where each client key is reached.
    learner : Learner
        The model and its optimizer.
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

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepRecord:
        """Take one step and return its record.

        Parameters
        ----------
        plan : StepPlan
            The step.
        timeout_s : callable
            Returns the bound on the exchange that is about to start, in seconds.
        ahead : StepPlan, optional
            The step after it, for which clients load their examples meanwhile.

        Raises
        ------
        PslError
            If a client fails, or a value cannot be used.
        """
        clock = PhaseClock()
        learner = self.learner
        requests = self._forward_requests(plan)
        clock.lap("encode")
        learner.start_step()
        if ahead is not None:
            self.transport.announce({self.nodes[id.client_key]: id for id in self._ids(ahead)})
        forwards = self.transport.exchange(requests, timeout_s())
        clock.lap("forward_exchange")

        batches = self._decoded(forwards)
        clock.lap("decode")
        activations, labels = self._global_batch(batches)
        passed = self._server_forward(plan, activations, labels)
        loss = float(passed.loss.detach())
        clock.lap("server_forward")
        cut_gradients = passed.backward()
        clock.lap("server_backward")

        # A client segment with nothing to train, a frozen feature extractor for example,
        # has no use for the gradient.
        returns = _backward_requests(requests, cut_gradients) if learner.client_parameters else {}
        clock.lap("encode")
        backwards = self.transport.exchange(returns, timeout_s()) if returns else {}
        clock.lap("backward_exchange")

        gradients = self._decoded(backwards)
        clock.lap("decode")
        learner.update(
            [check_gradients(reply, learner.client_parameters) for reply in gradients],
            [reply.moments for reply in forwards.values()],
        )
        clock.lap("update")
        replies = [*forwards.values(), *backwards.values()]
        return StepRecord(
            server_round=plan.server_round,
            step=plan.step,
            loss=loss,
            effective_batch_size=len(labels),
            clients=plan.batch_sizes,
            bytes_up=sum(reply.payload_bytes for reply in replies),
            bytes_down=sum(r.payload_bytes for r in [*requests.values(), *returns.values()]),
            seconds=clock.seconds(forwards, backwards),
            client_seconds=_client_seconds(replies),
        )

    def _forward_requests(self, plan: StepPlan) -> dict[int, StepRequest]:
        weights = self.learner.client_weights(self.encodings.weights)
        return {
            self.nodes[step_id.client_key]: StepRequest(
                phase=Phase.FORWARD, id=step_id, weights=weights, encodings=self.encodings
            )
            for step_id in self._ids(plan)
        }

    def _ids(self, plan: StepPlan) -> list[StepId]:
        """Return each client's part of a step, in client order."""
        return [
            StepId(
                seed=self.seed,
                server_round=plan.server_round,
                plan=_FIRST_PLAN,
                step=plan.step,
                client_key=key,
                start=plan.starts[key],
                batch_size=batch_size,
            )
            for key, batch_size in plan.batch_sizes.items()
        ]

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

    def _server_forward(
        self, plan: StepPlan, activations: Sequence[Tensor], labels: Tensor
    ) -> ServerPass:
        def checked_loss(outputs: Tensor, labels: Tensor) -> Tensor:
            check_class_labels(self.loss_fn, outputs, labels, plan.batch_sizes, str(plan))
            return self.loss_fn(outputs, labels)

        position = (plan.server_round, _FIRST_PLAN, plan.step)
        try:
            passed = server_pass.forward(
                self.learner.model.server,
                activations,
                labels,
                checked_loss,
                seed=derive_seed(self.seed, Purpose.SERVER_FORWARD, *position),
            )
        except PslError:
            raise
        except Exception as error:
            raise PslError(
                f"{plan}: the server segment or the loss raised {type(error).__name__}: {error}. "
                f"It got activations {tuple(activations[0].shape[1:])} of an example and labels "
                f"{tuple(labels.shape)}; check that the model, the cut and the loss fit the data."
            ) from error
        if not bool(torch.isfinite(passed.loss)):
            raise PslError(
                f"{plan}: the loss is {float(passed.loss.detach())}; it must be finite. Lower "
                "the learning rate or set max_grad_norm if training has diverged, and look for "
                "batches in which every label is ignored."
            )
        return passed


def _client_seconds(replies: Sequence[StepReply]) -> dict[int, float]:
    """Return how long each client was waited for, by client key."""
    seconds: dict[int, float] = {}
    for reply in replies:
        key = reply.id.client_key
        seconds[key] = seconds.get(key, 0.0) + reply.elapsed_s
    return seconds


def _backward_requests(
    requests: Mapping[int, StepRequest], cut_gradients: Sequence[Tensor]
) -> dict[int, StepRequest]:
    return {
        node: _backward_request(request, gradient)
        for (node, request), gradient in zip(requests.items(), cut_gradients, strict=True)
    }


def _backward_request(forward: StepRequest, gradient: Tensor) -> StepRequest:
    seed = partial(derive_seed, forward.id.seed, Purpose.ENCODING, *forward.id.position)
    encoded = encode_batch("gradient", gradient.cpu(), forward.encodings.gradients, seed)
    return StepRequest(
        phase=Phase.BACKWARD,
        id=forward.id,
        gradient=encoded.values,
        extras=encoded.extras,
        encodings=forward.encodings,
    )


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
