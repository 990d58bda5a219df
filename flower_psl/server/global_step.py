"""One step: one global batch, forward over the cut and back, one update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.kept_buffers import kept_buffers
from flower_psl.server.norm_bounds import check_update_norm
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.received_batch import ReceivedBatch
from flower_psl.server.split_step import Exchange, SplitStep, encode_gradient
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.server.step_plan import StepPlan
from flower_psl.transport import Answers
from flower_psl.wire import Phase, StepReply, StepRequest, check_gradients


@dataclass(frozen=True, kw_only=True)
class GlobalStep(SplitStep):
    """Takes steps in which the whole model is updated by one optimizer."""

    def run(
        self, plan: StepPlan, timeout_s: Callable[[], float], ahead: StepPlan | None = None
    ) -> StepOutcome:
        """Try to take one step.

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
            If the run cannot go on.
        """
        exchanges: list[Exchange] = []
        try:
            with kept_buffers(self.learner.server):
                return self._take(plan, timeout_s, ahead, exchanges)
        except DiscardedError as discarded:
            return self._discarded(discarded.failures, *exchanges)

    def take_back(self, key: int, *, has_segment: bool) -> None:
        """Do nothing: clients have nothing of their own."""

    def end_round(self, server_round: int, timeout_s: Callable[[], float]) -> StepOutcome:
        """Do nothing: a round is its steps."""
        return self._discarded({})

    def _take(
        self,
        plan: StepPlan,
        timeout_s: Callable[[], float],
        ahead: StepPlan | None,
        exchanges: list[Exchange],
    ) -> StepOutcome:
        """Take a step, noting its exchanges; a DiscardedError leaves the model as it was."""
        clock = PhaseClock()
        learner = self.learner
        requests = self._begin(plan, ahead, clock)
        forwards = self.transport.exchange(requests, timeout_s())
        exchanges.append((requests, forwards))
        clock.lap("forward_exchange")

        batches, failures = self._received(plan, forwards)
        plan = plan.of(batches)
        activations = [batch.activations.to(self.device) for batch in batches.values()]
        labels = torch.cat([batch.labels for batch in batches.values()]).to(self.device)
        clock.lap("decode")
        passed = self._forward.run(learner.server, plan, activations, labels)
        loss = float(passed.loss.detach())
        clock.lap("server_forward")
        cut_gradients = passed.backward()
        clock.lap("server_backward")

        # A client segment with nothing to train, a frozen feature extractor for example,
        # has no use for the gradient.
        asked = {self.nodes[key]: requests[self.nodes[key]] for key in batches}
        returns = _backward_requests(asked, cut_gradients) if learner.client_parameters else {}
        clock.lap("encode")
        backwards = Answers[StepReply]({}, {})
        if returns:
            backwards = self.transport.exchange(returns, timeout_s())
            exchanges.append((returns, backwards))
        clock.lap("backward_exchange")

        self._update(backwards, batches, clock)
        return self._outcome(plan, loss, clock, failures, *exchanges)

    def _begin(
        self, plan: StepPlan, ahead: StepPlan | None, clock: PhaseClock
    ) -> dict[int, StepRequest]:
        """Make the forward requests, and all else ready for their replies."""
        requests = self._forward_requests(plan)
        clock.lap("encode")
        self.learner.start_step()
        self._announce(ahead)
        return requests

    def _update(
        self,
        backwards: Answers[StepReply],
        batches: Mapping[int, ReceivedBatch],
        clock: PhaseClock,
    ) -> None:
        """Update the model, if every client's gradients are there."""
        gradients = self._gradients(backwards)
        clock.lap("decode")
        self.learner.update(gradients, [batch.moments for batch in batches.values()])
        clock.lap("update")

    def _forward_requests(self, plan: StepPlan) -> dict[int, StepRequest]:
        weights = self.learner.client_weights(self.encodings.weights)
        return {
            self.nodes[step_id.client_key]: StepRequest(
                phase=Phase.FORWARD, id=step_id, weights=weights, encodings=self.encodings
            )
            for step_id in self._ids(plan)
        }

    def _gradients(self, answers: Answers[StepReply]) -> list[Mapping[str, Tensor]]:
        """Return the clients' parameter gradients, which are of use only if all are there."""
        failures = self._by_key(answers.failures)
        gradients = []
        for reply in answers.replies.values():
            try:
                decoded = self._decoded(reply)
                gradients.append(check_gradients(decoded, self.learner.client_parameters))
                check_update_norm(
                    reply.id, decoded.gradients.values(), self.failures.max_update_norm
                )
            except ProtocolError as error:
                failures[reply.id.client_key] = error
        if failures:
            raise DiscardedError(failures)
        return gradients


def _backward_requests(
    requests: Mapping[int, StepRequest], cut_gradients: Sequence[Tensor]
) -> dict[int, StepRequest]:
    return {
        node: backward_request(request, gradient)
        for (node, request), gradient in zip(requests.items(), cut_gradients, strict=True)
    }


def backward_request(forward: StepRequest, gradient: Tensor) -> StepRequest:
    """Return the request that brings a client its cut gradient."""
    encoded = encode_gradient(forward.id, gradient, forward.encodings)
    return StepRequest(
        phase=Phase.BACKWARD,
        id=forward.id,
        gradient=encoded.values,
        extras=encoded.extras,
        encodings=forward.encodings,
    )
