"""One step in which every client updates its own segment, in one exchange."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flower_psl.server.client_aggregation import ClientAggregation
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.split_step import SplitStep, encode_gradient
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates import ServerUpdate
from flower_psl.server.weighted_mean import weighted_mean
from flower_psl.split import load_tensors, trained_tensors
from flower_psl.telemetry import StepRecord
from flower_psl.wire import (
    EncodedBatch,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_weights,
)


@dataclass(frozen=True, kw_only=True)
class LocalStep(SplitStep):
    """Takes steps in which the clients and the server update their segments apart.

    The gradient of a client's step travels with the request for its next one, or at the end
    of the round.

    Attributes
    ----------
    update : ServerUpdate
        How the server segment learns.
    aggregation : ClientAggregation or None
        What makes one client segment of all at the end of a round; None leaves each client
        its own for the whole run.
    """

    update: ServerUpdate
    aggregation: ClientAggregation | None
    # By client key: the gradients that have not travelled yet, with their steps; the examples
    # used in this round; and who has a segment of its own.
    _left: dict[int, tuple[StepId, EncodedBatch]] = field(default_factory=dict, init=False)
    _examples: dict[int, int] = field(default_factory=dict, init=False)
    _started: set[int] = field(default_factory=set, init=False)

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds."""
        return frozenset(self._started)

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepRecord:
        """Take one step, end the round if it is its last, and return the record.

        Parameters
        ----------
        plan : StepPlan
            The step.
        timeout_s : callable
            Returns the bound on the exchange that is about to start, in seconds.
        ahead : StepPlan, optional
            The step after it, for which clients load their examples meanwhile. Without one
            the round ends.

        Raises
        ------
        PslError
            If a client fails, or a value cannot be used.
        """
        clock = PhaseClock()
        steps = self._ids(plan)
        requests = self._train_requests(steps)
        clock.lap("encode")
        self._announce(ahead)
        forwards = self.transport.exchange(requests, timeout_s())
        clock.lap("forward_exchange")

        batches = self._decoded(forwards)
        clock.lap("decode")
        activations, labels = self._global_batch(batches)
        sizes = [step.batch_size for step in steps]
        turn = self.update.run(plan, activations, torch.split(labels, sizes))
        clock.lap("server_update")
        self._keep(steps, turn.cut_gradients)
        clock.lap("encode")

        last = {} if ahead is not None else self._last_requests()
        finished = self.transport.exchange(last, timeout_s()) if last else {}
        clock.lap("backward_exchange")
        if ahead is None:
            self._end_round(plan.server_round, finished)
        clock.lap("update")
        return self._record(plan, turn.loss, clock, (requests, forwards), (last, finished))

    def _train_requests(self, steps: Sequence[StepId]) -> dict[int, StepRequest]:
        # One mapping for all who start: a transport sends what they share once.
        weights: Mapping[str, Tensor] = {}
        if not self._started.issuperset(step.client_key for step in steps):
            weights = self.learner.client_weights(self.encodings.weights)
        requests = {}
        for step in steps:
            previous, gradient = self._left.pop(step.client_key, (None, None))
            requests[self.nodes[step.client_key]] = StepRequest(
                phase=Phase.TRAIN,
                id=step,
                weights={} if step.client_key in self._started else weights,
                previous=previous,
                gradient=None if gradient is None else gradient.values,
                extras={} if gradient is None else gradient.extras,
                encodings=self.encodings,
            )
        return requests

    def _keep(self, steps: Sequence[StepId], gradients: Sequence[Tensor]) -> None:
        """Note what each client of a step has done, and is to get."""
        for step, gradient in zip(steps, gradients, strict=True):
            key = step.client_key
            self._left[key] = (step, encode_gradient(step, gradient, self.encodings))
            self._examples[key] = self._examples.get(key, 0) + step.batch_size
            self._started.add(key)

    def _last_requests(self) -> dict[int, StepRequest]:
        phase = Phase.SETTLE if self.aggregation is None else Phase.COLLECT
        return {
            self.nodes[key]: StepRequest(
                phase=phase,
                id=step,
                gradient=gradient.values,
                extras=gradient.extras,
                encodings=self.encodings,
            )
            for key, (step, gradient) in sorted(self._left.items())
        }

    def _end_round(self, server_round: int, replies: Mapping[int, StepReply]) -> None:
        self.update.end_round()
        if self.aggregation is not None:
            num_examples = {self.nodes[key]: count for key, count in self._examples.items()}
            self._aggregate(self.aggregation, server_round, replies, num_examples)
            self._started.clear()
        self._left.clear()
        self._examples.clear()

    def _aggregate(
        self,
        aggregation: ClientAggregation,
        server_round: int,
        replies: Mapping[int, StepReply],
        num_examples: Mapping[int, int],
    ) -> None:
        """Make one client segment of those that the clients have trained."""
        own = trained_tensors(self.learner.model.client)
        trained = {node: check_weights(reply, own) for node, reply in replies.items()}
        parameters = list(self.learner.client_parameters)
        merged: dict[str, Tensor] = {}
        if parameters:
            merged |= aggregation.aggregate(
                server_round,
                {name: own[name].cpu() for name in parameters},
                {
                    node: {name: part[name] for name in parameters}
                    for node, part in trained.items()
                },
                num_examples,
            )
        # Running statistics are no parameters: a strategy that extrapolates could make a
        # variance negative.
        statistics = [name for name in own if name not in self.learner.client_parameters]
        merged |= weighted_mean(
            {node: {name: part[name] for name in statistics} for node, part in trained.items()},
            num_examples,
        )
        load_tensors(self.learner.model.client, merged)
