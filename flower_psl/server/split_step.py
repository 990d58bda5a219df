"""What steps of every kind share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError, PslError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.server.class_labels import ClassLabels
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.learner import Learner
from flower_psl.server.norm_bounds import check_activation_norm
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.received_batch import ReceivedBatch, odd_batches
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.stateful import Stateful
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.server.step_plan import StepPlan
from flower_psl.split import LossFn, check_moments
from flower_psl.telemetry import StepRecord
from flower_psl.transport import Answers, Transport
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

# The requests of one exchange, and what came back.
Exchange = tuple[Mapping[int, StepRequest], Answers[StepReply]]


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """What steps of a run are taken with.

    Attributes
    ----------
    transport : Transport
        What reaches the clients.
    nodes : mapping of int to int
        Where each client key is reached, now.
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
    failures : FailurePolicy
        What becomes of a step when clients fail.
    """

    transport: Transport
    nodes: Mapping[int, int]
    learner: Learner
    loss_fn: LossFn
    seed: int
    device: torch.device
    encodings: Encodings = field(default_factory=Encodings)
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    _class_labels: ClassLabels = field(init=False)

    def __post_init__(self) -> None:
        """Prepare to look at labels."""
        object.__setattr__(self, "_class_labels", ClassLabels(self.loss_fn))

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds: none."""
        return frozenset()

    @property
    def parts(self) -> dict[str, Stateful]:
        """What changes from step to step beside the learner, by name: nothing."""
        return {}

    def leave_out(self, keys: Iterable[int]) -> None:
        """Do nothing: clients have nothing of their own that would be missing."""

    @property
    def _forward(self) -> ServerForward:
        return ServerForward(loss_fn=self.loss_fn, seed=self.seed)

    def _ids(self, plan: StepPlan) -> list[StepId]:
        """Return each client's part of a step, in client order."""
        return [
            StepId(
                seed=self.seed,
                server_round=plan.server_round,
                plan=plan.plan,
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

    def _outcome(
        self,
        plan: StepPlan,
        loss: float,
        clock: PhaseClock,
        failures: Mapping[int, PslError],
        *exchanges: Exchange,
        stop: PslError | None = None,
    ) -> StepOutcome:
        """Return what came of a step that was taken."""
        bytes_up, bytes_down = _traffic(exchanges)
        replies = [reply for _, answers in exchanges for reply in answers.replies.values()]
        record = StepRecord(
            server_round=plan.server_round,
            step=plan.step,
            loss=loss,
            effective_batch_size=plan.num_examples,
            clients=plan.batch_sizes,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            seconds=clock.seconds(*(answers.replies for _, answers in exchanges)),
            client_seconds=_client_seconds(replies),
            plan=plan.plan,
        )
        return StepOutcome(
            record=record,
            failures=failures,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            stop=stop,
        )

    def _discarded(self, failures: Mapping[int, PslError], *exchanges: Exchange) -> StepOutcome:
        """Return what came of a step that was not taken."""
        bytes_up, bytes_down = _traffic(exchanges)
        return StepOutcome(
            record=None, failures=failures, bytes_up=bytes_up, bytes_down=bytes_down
        )

    def _decoded(self, reply: StepReply) -> StepReply:
        """Return a reply with the values that the client encoded."""
        return decode_reply(reply, self.encodings, self.learner.client_parameters)

    def _received(
        self, plan: StepPlan, answers: Answers[StepReply]
    ) -> tuple[dict[int, ReceivedBatch], dict[int, PslError]]:
        """Return what clients sent for a step, in client order, and who failed.

        Raises
        ------
        DiscardedError
            If too much is missing to take the step.
        """
        failures = self._by_key(answers.failures)
        batches: dict[int, ReceivedBatch] = {}
        for reply in answers.replies.values():
            try:
                batches[reply.id.client_key] = self._batch(reply)
            except ProtocolError as error:
                failures[reply.id.client_key] = error
        return self._fitting(plan, batches, failures)

    def _fitting(
        self, plan: StepPlan, batches: Mapping[int, ReceivedBatch], failures: dict[int, PslError]
    ) -> tuple[dict[int, ReceivedBatch], dict[int, PslError]]:
        """Return the batches that can be one, and who failed, those of the others included.

        Raises
        ------
        DiscardedError
            If too much is missing to take the step.
        """
        failures |= odd_batches(batches)
        fitting = _without(batches, failures)
        if fitting:
            first = next(iter(fitting.values()))
            self._class_labels.ask(self.learner.model.server, first.activations.to(self.device))
            failures |= self._class_labels.wrong(
                {key: batch.labels for key, batch in fitting.items()}, plan
            )
        fitting = _without(fitting, failures)
        if not self.failures.suffices(plan.of(fitting).num_examples, plan.num_examples):
            raise DiscardedError(failures)
        return fitting, failures

    def _batch(self, reply: StepReply) -> ReceivedBatch:
        reply = self._decoded(reply)
        activations, labels = check_batch(reply)
        check_moments(self.learner.model.client, reply.moments, reply.id)
        check_activation_norm(reply.id, activations, self.failures.max_activation_norm)
        return ReceivedBatch(reply.id, activations, labels, reply.moments)

    def _by_key(self, failures: Mapping[int, PslError]) -> dict[int, PslError]:
        """Return the failures of nodes by client key."""
        if not failures:
            return {}
        return {key: failures[node] for key, node in self.nodes.items() if node in failures}


class StepTaker(Protocol):
    """What takes the steps of a run, whatever becomes of the client segments."""

    @property
    def learner(self) -> Learner:
        """The model and the server's optimizer."""

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds."""

    @property
    def parts(self) -> dict[str, Stateful]:
        """What changes from step to step beside the learner, by name."""

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepOutcome:
        """Try to take one step; the last of a round has none ahead, and ends the round."""

    def leave_out(self, keys: Iterable[int]) -> None:
        """Note that clients are not there, which no step has found out."""

    def take_back(self, key: int, *, has_segment: bool) -> None:
        """Let a client take part again, with the segment that it trained by itself or not."""

    def end_round(self, server_round: int, timeout_s: Callable[[], float]) -> StepOutcome:
        """End a round, if its last step has not: with a step that was not taken."""


def _without(
    batches: Mapping[int, ReceivedBatch], failures: Mapping[int, PslError]
) -> dict[int, ReceivedBatch]:
    return {key: batch for key, batch in batches.items() if key not in failures}


def _traffic(exchanges: Sequence[Exchange]) -> tuple[int, int]:
    """Return the bytes that came from the clients, and that went to them."""
    return (
        sum(r.payload_bytes for _, answers in exchanges for r in answers.replies.values()),
        sum(r.payload_bytes for requests, _ in exchanges for r in requests.values()),
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
