"""One step in which the server computes while tensors are on their way."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from flower_psl.errors import ProtocolError, PslError
from flower_psl.server.global_step import GlobalStep, backward_request
from flower_psl.server.phase_clock import PhaseClock
from flower_psl.server.received_batch import ReceivedBatch
from flower_psl.server.server_forward import is_first, raised
from flower_psl.server.split_step import Exchange
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.server.step_plan import StepPlan
from flower_psl.split import PartPasses, check_example_wise
from flower_psl.transport import Answers, exchange_in_portions
from flower_psl.wire import StepReply, StepRequest

# Enough to see whether a segment treats every example alone.
_LOOKED_AT = 8


@dataclass(frozen=True, kw_only=True)
class OverlappedStep(GlobalStep):
    """Takes steps as `GlobalStep` does, the server segment one client's part at a time.

    It runs over a part as soon as that has come, while others are on their way, and each cut
    gradient leaves as soon as it is there, while the next is computed. The loss is still that
    of the global batch, and backward passes are made in client order, so that the bits do not
    depend on who answered first.
    """

    def _take(
        self,
        plan: StepPlan,
        timeout_s: Callable[[], float],
        ahead: StepPlan | None,
        exchanges: list[Exchange],
    ) -> StepOutcome:
        """Take a step, noting its exchanges; a DiscardedError leaves the model as it was."""
        clock = PhaseClock()
        requests = self._begin(plan, ahead, clock)
        passes = PartPasses(self.learner.server)
        batches, failures = self._forward_parts(
            plan, passes, requests, timeout_s(), exchanges, clock
        )
        plan = plan.of(batches)
        loss = self._loss(plan, passes, batches)
        clock.lap("server_forward")
        backwards = self._backward_parts(
            passes,
            {key: requests[self.nodes[key]] for key in batches},
            timeout_s,
            exchanges,
            clock,
        )
        self._update(backwards, batches, clock)
        return self._outcome(plan, loss, clock, failures, *exchanges)

    def _forward_parts(
        self,
        plan: StepPlan,
        passes: PartPasses,
        requests: Mapping[int, StepRequest],
        timeout_s: float,
        exchanges: list[Exchange],
        clock: PhaseClock,
    ) -> tuple[dict[int, ReceivedBatch], dict[int, PslError]]:
        """Ask for activations, run the segment over each part, and return what can be one."""
        batches: dict[int, ReceivedBatch] = {}
        failures: dict[int, PslError] = {}

        def run(reply: StepReply) -> None:
            clock.lap("forward_exchange")
            key = reply.id.client_key
            try:
                # Kept whatever comes of it: beside the others it may be seen what is odd about it.
                batch = batches[key] = self._batch(reply)
                clock.lap("decode")
                self._forward_part(plan, passes, batch)
            except ProtocolError as error:
                failures[key] = error
            clock.lap("server_forward")

        answers = exchange_in_portions(self.transport, [requests], timeout_s, run)
        exchanges.append((requests, answers))
        clock.lap("forward_exchange")
        if batches and batches.keys() <= failures.keys() and is_first(plan):
            # The segment raised for everybody: what all of them share is rather the reason.
            raise failures[next(iter(batches))]
        failures |= self._by_key(answers.failures)
        in_order = {key: batches[key] for key in plan.batch_sizes if key in batches}
        fitting, failures = self._fitting(plan, in_order, failures)
        clock.lap("decode")
        if is_first(plan):
            self._check_example_wise(fitting)
        return fitting, failures

    def _forward_part(self, plan: StepPlan, passes: PartPasses, batch: ReceivedBatch) -> None:
        key = batch.id.client_key
        try:
            passes.forward(key, batch.activations.to(self.device))
        except PslError:
            raise
        except Exception as error:
            where = f"client {key}, {plan}"
            raise raised(where, error, [batch.activations], batch.labels) from error

    def _check_example_wise(self, batches: Mapping[int, ReceivedBatch]) -> None:
        """Refuse a server segment for which parts do not come to the whole."""
        few = torch.cat([batch.activations[:_LOOKED_AT] for batch in batches.values()])
        if len(few) > 1:
            server = self.learner.server
            check_example_wise(
                server.module,
                server.tensors,
                few[:_LOOKED_AT],
                name="server segment",
                remedy="Leave out overlap, or replace the layer",
            )

    def _loss(
        self, plan: StepPlan, passes: PartPasses, batches: Mapping[int, ReceivedBatch]
    ) -> float:
        """Return the loss over the global batch.

        Raises
        ------
        DiscardedError
            If what some clients sent is the reason that there is none.
        PslError
            If there is another.
        """
        labels = torch.cat([batch.labels for batch in batches.values()]).to(self.device)
        try:
            loss = passes.loss(batches, labels, self.loss_fn, seed=self._forward.seed_of(plan))
        except PslError:
            raise
        except Exception as error:
            parts = [batch.activations.to(self.device) for batch in batches.values()]
            raise self._forward.reason(self.learner.server, plan, parts, labels, error) from error
        self._forward.check_finite(plan, loss, passes.outputs(batches), labels)
        return float(loss)

    def _backward_parts(
        self,
        passes: PartPasses,
        forwards: Mapping[int, StepRequest],
        timeout_s: Callable[[], float],
        exchanges: list[Exchange],
        clock: PhaseClock,
    ) -> Answers[StepReply]:
        """Run backward over each part, in client order, and return the clients' gradients."""
        if not self.learner.client_parameters:
            for key in forwards:
                passes.backward(key)
            clock.lap("server_backward")
            return Answers({}, {})
        returns: dict[int, StepRequest] = {}

        def portions() -> Iterator[Mapping[int, StepRequest]]:
            for key, forward in forwards.items():
                clock.lap("backward_exchange")
                gradient = passes.backward(key)
                clock.lap("server_backward")
                returns[self.nodes[key]] = backward_request(forward, gradient)
                clock.lap("encode")
                yield {self.nodes[key]: returns[self.nodes[key]]}

        answers = exchange_in_portions(self.transport, portions(), timeout_s())
        exchanges.append((returns, answers))
        clock.lap("backward_exchange")
        return answers
