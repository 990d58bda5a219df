"""One step in which every client updates its own segment, in one exchange."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError, PslError
from flower_psl.server.client_aggregation import ClientAggregation
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.kept_buffers import kept_buffers
from flower_psl.server.local_state import LocalState
from flower_psl.server.norm_bounds import check_update_norm
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.received_batch import ReceivedBatch
from flower_psl.server.split_step import Exchange, SplitStep, encode_gradient
from flower_psl.server.stateful import Stateful
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates import ServerUpdate
from flower_psl.server.weighted_mean import weighted_mean
from flower_psl.split import load_tensors, trained_tensors
from flower_psl.transport import Answers
from flower_psl.wire import Phase, StepId, StepReply, StepRequest, check_weights


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
    state : LocalState
        What has become of the clients' segments so far.
    """

    update: ServerUpdate
    aggregation: ClientAggregation | None
    state: LocalState = field(default_factory=LocalState, init=False)

    @property
    def apart(self) -> frozenset[int]:
        """Clients that have a segment of their own between rounds."""
        return frozenset(self.state.started)

    @property
    def parts(self) -> dict[str, Stateful]:
        """What changes from step to step beside the learner, by name."""
        shared = {} if self.aggregation is None else {"aggregation": self.aggregation}
        return {"segments": self.state, "update": self.update, **shared}

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepOutcome:
        """Try to take one step, and end the round if it is its last.

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
            If the run cannot go on.
        """
        exchanges: list[Exchange] = []
        try:
            return self._take(plan, timeout_s, ahead, exchanges)
        except DiscardedError as discarded:
            self.state.gone.update(discarded.failures)
            return self._discarded(discarded.failures, *exchanges)

    def leave_out(self, keys: Iterable[int]) -> None:
        """Note that clients are not there; their segments are not asked for."""
        self.state.gone.update(keys)

    def take_back(self, key: int, *, has_segment: bool) -> None:
        """Let a client take part again, with the segment that it trained by itself or not.

        Without it, the client starts anew from the weights that clients start from; what it
        did in this round no longer weighs in the mean.
        """
        self.state.take_back(key, has_segment=has_segment)

    def end_round(self, server_round: int, timeout_s: Callable[[], float]) -> StepOutcome:
        """End a round whose last step was not taken."""
        failures, exchanges, stop = self._end_round(server_round, timeout_s)
        return replace(self._discarded(failures, *exchanges), stop=stop)

    def _take(
        self,
        plan: StepPlan,
        timeout_s: Callable[[], float],
        ahead: StepPlan | None,
        exchanges: list[Exchange],
    ) -> StepOutcome:
        """Take a step, noting its exchanges; a DiscardedError leaves the model as it was."""
        clock = PhaseClock()
        steps = self._ids(plan)
        requests = self._train_requests(steps)
        clock.lap("encode")
        self._announce(ahead)
        forwards = self.transport.exchange(requests, timeout_s())
        exchanges.append((requests, forwards))
        self.state.asked(steps, [reply.id for reply in forwards.replies.values()])
        clock.lap("forward_exchange")

        batches, failures = self._received(plan, forwards)
        plan = plan.of(batches)
        clock.lap("decode")
        with kept_buffers(self.learner.server):
            turn = self.update.run(plan, *self._on_device(batches.values()))
        failures |= turn.failures
        plan = plan.of(key for key in batches if key not in turn.failures)
        self.state.gone.update(failures)
        clock.lap("server_update")
        parts = zip(batches.items(), turn.cut_gradients, turn.normalizers, strict=True)
        for (key, batch), gradient, weight in parts:
            if key not in failures:
                encoded = encode_gradient(batch.id, gradient, self.encodings)
                self.state.keep(batch.id, encoded, weight)
        clock.lap("encode")
        clock.lap("backward_exchange")  # which there is at the end of a round only
        stop = None
        if ahead is None:
            late, last, stop = self._end_round(plan.server_round, timeout_s, clock)
            failures |= late
            exchanges += last
        clock.lap("update")
        return self._outcome(plan, turn.loss, clock, failures, *exchanges, stop=stop)

    def _on_device(
        self, batches: Collection[ReceivedBatch]
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Return each client's activations and labels where the server computes."""
        labels = torch.cat([batch.labels for batch in batches]).to(self.device)
        return (
            [batch.activations.to(self.device) for batch in batches],
            torch.split(labels, [batch.id.batch_size for batch in batches]),
        )

    def _train_requests(self, steps: Sequence[StepId]) -> dict[int, StepRequest]:
        # One mapping for all who start: a transport sends what they share once.
        weights: Mapping[str, Tensor] = {}
        if not self.state.started.issuperset(step.client_key for step in steps):
            weights = self.learner.client_weights(self.encodings.weights)
        requests = {}
        for step in steps:
            key = step.client_key
            previous, gradient = self.state.left.get(key, (None, None))
            requests[self.nodes[key]] = StepRequest(
                phase=Phase.TRAIN,
                id=step,
                weights={} if key in self.state.started else weights,
                previous=previous,
                gradient=None if gradient is None else gradient.values,
                extras={} if gradient is None else gradient.extras,
                forget=key in self.state.forget,
                encodings=self.encodings,
            )
        return requests

    def _last_exchange(self, timeout_s: Callable[[], float]) -> Exchange:
        """Let those who are there take the gradients that are left, and ask for what is shared."""
        state = self.state
        shared = (key for key, weight in state.weights.items() if weight)
        keys = set(state.left if self.aggregation is None else shared) - state.gone
        requests = {self.nodes[key]: self._last_request(key) for key in sorted(keys)}
        if not requests:
            return {}, Answers({}, {})
        return requests, self.transport.exchange(requests, timeout_s())

    def _last_request(self, key: int) -> StepRequest:
        step, gradient = self.state.left.get(key) or (self.state.last[key], None)
        return StepRequest(
            phase=Phase.SETTLE if self.aggregation is None else Phase.COLLECT,
            id=step,
            gradient=None if gradient is None else gradient.values,
            extras={} if gradient is None else gradient.extras,
            forget=key in self.state.forget,
            encodings=self.encodings,
        )

    def _end_round(
        self, server_round: int, timeout_s: Callable[[], float], clock: PhaseClock | None = None
    ) -> tuple[dict[int, PslError], list[Exchange], PslError | None]:
        """Bring both segments to their state between rounds.

        Returns who failed, what travelled, and why the run cannot go on, if it cannot: the
        steps of the round are then whole, and it can be ended again.
        """
        failures: dict[int, PslError] = {}
        exchanges: list[Exchange] = []
        try:
            exchanges.append(last := self._last_exchange(timeout_s))
            if clock is not None:
                clock.lap("backward_exchange")
            failures |= self._by_key(last[1].failures)
            self._take_in(server_round, last[1].replies, failures)
        except PslError as error:
            return failures, exchanges, error
        finally:
            self.state.gone.update(failures)
        self.update.end_round()
        self.state.end_round(shared=self.aggregation is not None)
        return failures, exchanges, None

    def _take_in(
        self,
        server_round: int,
        replies: Mapping[int, StepReply],
        failures: dict[int, PslError],
    ) -> None:
        """Note what reached the clients, or make one client segment of theirs."""
        if self.aggregation is None:
            for reply in replies.values():
                self.state.left.pop(reply.id.client_key)
            return
        trained, unusable = self._trained(replies)
        failures |= unusable
        if trained:
            self._aggregate(
                self.aggregation,
                server_round,
                trained,
                {node: self.state.weights[replies[node].id.client_key] for node in trained},
            )

    def _trained(
        self, replies: Mapping[int, StepReply]
    ) -> tuple[dict[int, Mapping[str, Tensor]], dict[int, PslError]]:
        """Return what the clients have trained, by node, and whose cannot be used."""
        own = trained_tensors(self.learner.client)
        # Running statistics too: evaluation divides by them.
        bounded = [name for name in own if own[name].is_floating_point()]
        trained: dict[int, Mapping[str, Tensor]] = {}
        failures: dict[int, PslError] = {}
        for node, reply in replies.items():
            try:
                weights = check_weights(reply, own)
                changes = (weights[name] - own[name].cpu() for name in bounded)
                check_update_norm(reply.id, changes, self.failures.max_update_norm)
                trained[node] = weights
            except ProtocolError as error:
                failures[reply.id.client_key] = error
        return trained, failures

    def _aggregate(
        self,
        aggregation: ClientAggregation,
        server_round: int,
        trained: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, float],
    ) -> None:
        """Make one client segment of those that came."""
        own = trained_tensors(self.learner.client)
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
                weights,
            )
        # Running statistics are no parameters: a strategy that extrapolates could make a
        # variance negative.
        statistics = [name for name in own if name not in self.learner.client_parameters]
        merged |= weighted_mean(
            {node: {name: part[name] for name in statistics} for node, part in trained.items()},
            weights,
        )
        load_tensors(self.learner.model.client, merged)
