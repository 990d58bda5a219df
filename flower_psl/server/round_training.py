"""The steps of a round, whatever clients do in it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flower_psl.server.attendance import Attendance
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.ledger import Ledger
from flower_psl.server.round_plan import RoundPlan
from flower_psl.server.run_watch import RunWatch
from flower_psl.server.split_step import StepTaker
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.server.step_plan import StepPlan

_LOG = logging.getLogger("flwr.psl")


class RoundTraining:
    """Takes the steps of a round: each is taken, or discarded and drawn anew.

    Parameters
    ----------
    stepper : StepTaker
        Takes the steps.
    plan : RoundPlan
        Says which.
    attendance : Attendance
        Knows who is there.
    policy : FailurePolicy
        What becomes of a step when clients fail.
    ledger : Ledger
        What has happened so far.
    at_each_step : bool
        Whether clients may come back between steps, and not between rounds only.
    watch : RunWatch
        Is told of every step.
    """

    def __init__(
        self,
        stepper: StepTaker,
        plan: RoundPlan,
        attendance: Attendance,
        policy: FailurePolicy,
        ledger: Ledger,
        *,
        at_each_step: bool,
        watch: RunWatch,
    ) -> None:
        self._stepper = stepper
        self._plan = plan
        self._attendance = attendance
        self._policy = policy
        self._ledger = ledger
        self._at_each_step = at_each_step
        self._watch = watch
        # Those before a restart count in the records, but devices may have been mended since.
        self._redraws_before = ledger.redraws

    def run(self, timeout_s: Callable[[str], float]) -> None:
        """Take the steps that are left of the ledger's round.

        Parameters
        ----------
        timeout_s : callable
            Returns the bound on the exchange that is about to start, in seconds, of what to
            call the place in the run.

        Raises
        ------
        PslError
            If the run cannot go on.
        """
        step, ahead = self._plan.next_steps()
        while step is not None:
            outcome = self._stepper.run(step, partial(timeout_s, str(step)), ahead)
            self._note(step, outcome)
            if outcome.stop is not None:
                raise outcome.stop
            changed = bool(outcome.failures)
            if outcome.record is not None:
                if ahead is None:  # the step has ended the round
                    self._watch.between_steps()
                    return
                changed |= self._at_each_step and self.take_back()
            if changed:
                self._plan.redraw()
            if outcome.record is not None:
                self._watch.between_steps()
            step, ahead = self._plan.next_steps()
        self._end(timeout_s)

    def begin(self) -> bool:
        """Prepare a round, or the rest of one: as `take_back`, and who is there must suffice.

        Raises
        ------
        ClientError
            If fewer clients are there than the policy asks for.
        """
        are_back = self.take_back()
        self._attendance.require_enough()
        return are_back

    def take_back(self) -> bool:
        """Let clients that report again take part, and tell whether there are any."""
        back = self._attendance.take_back()
        for key, has_segment in back.items():
            self._stepper.take_back(key, has_segment=has_segment)
        return bool(back)

    def _note(self, step: StepPlan, outcome: StepOutcome) -> None:
        """Write down what came of a step, and leave out who failed in it."""
        ledger, record = self._ledger, outcome.record
        ledger.failed |= {key: str(failure) for key, failure in outcome.failures.items()}
        if record is None:
            ledger.redraws += 1
            ledger.discard(step.num_examples, outcome.bytes_up, outcome.bytes_down)
        else:
            record = replace(record, redraws=ledger.redraws, failed=ledger.failed)
            ledger.accept(record.clients, record.loss)
            self._watch.on_step(record)
            self._redraws_before = 0
        self._attendance.leave_out(outcome.failures)
        if record is None:
            _LOG.warning(
                "%s is discarded; what is left of its %d examples is drawn anew",
                step,
                step.num_examples,
            )
        in_a_row = ledger.redraws - self._redraws_before
        if in_a_row > self._policy.max_redraws:
            cause = next(iter(outcome.failures.values()))
            raise type(cause)(
                f"{step} was discarded {in_a_row} times in a row; FailurePolicy.max_redraws "
                f"is {self._policy.max_redraws}. Lower its quorum, so that steps are taken "
                f"without clients that fail, or find out why they do. The last one: {cause}"
            ) from cause

    def _end(self, timeout_s: Callable[[str], float]) -> None:
        """End a round whose last step was not taken."""
        server_round = self._ledger.server_round
        where = f"round {server_round}, its end"
        outcome = self._stepper.end_round(server_round, partial(timeout_s, where))
        self._ledger.discard(0, outcome.bytes_up, outcome.bytes_down)
        self._attendance.leave_out(outcome.failures)
        if outcome.stop is not None:
            raise outcome.stop
