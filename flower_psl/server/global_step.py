"""One step: one global batch, forward over the cut and back, one update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.split_step import SplitStep, encode_gradient
from flower_psl.server.step_plan import StepPlan
from flower_psl.telemetry import StepRecord
from flower_psl.wire import Phase, StepRequest, check_gradients


@dataclass(frozen=True, kw_only=True)
class GlobalStep(SplitStep):
    """Takes steps in which the whole model is updated by one optimizer."""

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
        self._announce(ahead)
        forwards = self.transport.exchange(requests, timeout_s())
        clock.lap("forward_exchange")

        batches = self._decoded(forwards)
        clock.lap("decode")
        activations, labels = self._global_batch(batches)
        passed = self._forward.run(learner.model.server, plan, activations, labels)
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
        return self._record(plan, loss, clock, (requests, forwards), (returns, backwards))

    def _forward_requests(self, plan: StepPlan) -> dict[int, StepRequest]:
        weights = self.learner.client_weights(self.encodings.weights)
        return {
            self.nodes[step_id.client_key]: StepRequest(
                phase=Phase.FORWARD, id=step_id, weights=weights, encodings=self.encodings
            )
            for step_id in self._ids(plan)
        }


def _backward_requests(
    requests: Mapping[int, StepRequest], cut_gradients: Sequence[Tensor]
) -> dict[int, StepRequest]:
    return {
        node: _backward_request(request, gradient)
        for (node, request), gradient in zip(requests.items(), cut_gradients, strict=True)
    }


def _backward_request(forward: StepRequest, gradient: Tensor) -> StepRequest:
    encoded = encode_gradient(forward.id, gradient, forward.encodings)
    return StepRequest(
        phase=Phase.BACKWARD,
        id=forward.id,
        gradient=encoded.values,
        extras=encoded.extras,
        encodings=forward.encodings,
    )
