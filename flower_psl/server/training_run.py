"""A whole run: who takes part, its rounds, their steps, evaluation and records."""

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from flower_psl.errors import ConfigError, PslError, WaitError
from flower_psl.server.announce import announce
from flower_psl.server.attendance import Attendance
from flower_psl.server.checkpoints.checkpoint_store import CheckpointStore, Saved
from flower_psl.server.checkpoints.client_list import absent, client_list, rejoined
from flower_psl.server.checkpoints.device_states import DeviceStates
from flower_psl.server.checkpoints.ledger_state import LedgerState
from flower_psl.server.checkpoints.recorder_state import RecorderState
from flower_psl.server.checkpoints.run_identity import environment, identity_of
from flower_psl.server.checkpoints.run_saver import RunSaver
from flower_psl.server.checkpoints.saving import Saving
from flower_psl.server.client_aggregation import ClientAggregation
from flower_psl.server.client_strategy_checks import check_clients
from flower_psl.server.ledger import Ledger
from flower_psl.server.make_step import make_step
from flower_psl.server.participants import Participants, gather
from flower_psl.server.round_plan import RoundPlan
from flower_psl.server.round_report import EvaluateFn, RoundReport
from flower_psl.server.round_training import RoundTraining
from flower_psl.server.run_history import RunHistory
from flower_psl.server.run_watch import RunWatch
from flower_psl.server.split_step import StepTaker
from flower_psl.server.torn import TornError
from flower_psl.split import SplitModel, keep_freed_memory
from flower_psl.storage import Version
from flower_psl.telemetry import Progress, RunInfo
from flower_psl.transport import Transport

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning

_LOG = logging.getLogger("flwr.psl")


class TrainingRun:
    """One call of `ParallelSplitLearning.start`, whatever carries its messages.

    Parameters
    ----------
    strategy : ParallelSplitLearning
        The run's settings.
    model : SplitModel
        The model to train, with its initial weights. It is changed.
    transport : Transport
        What reaches the clients.
    num_rounds : int
        Rounds.
    round_timeout_s : float
        Bound on the waiting in one round, in seconds.
    evaluate_fn : callable, optional
        Central evaluation of a whole model's state dict.
    aggregation : ClientAggregation
        What makes one client segment of all, with ``client_sync="round"``.
    """

    def __init__(
        self,
        strategy: "ParallelSplitLearning",
        model: SplitModel,
        transport: Transport,
        *,
        num_rounds: int,
        round_timeout_s: float,
        evaluate_fn: EvaluateFn | None,
        aggregation: ClientAggregation,
    ) -> None:
        if num_rounds < 1:
            raise ConfigError(f"num_rounds is {num_rounds}; a run has 1 round or more")
        if not round_timeout_s > 0:
            raise ConfigError(f"timeout is {round_timeout_s}; it must be more than 0 seconds")
        self._strategy = strategy
        self._model = model
        self._transport = transport
        self._num_rounds = num_rounds
        self._round_timeout_s = round_timeout_s
        self._evaluate_fn = evaluate_fn
        self._aggregation = aggregation
        self._progress = Progress(num_rounds, log=_LOG.info)
        self._history = RunHistory()
        self._ledger = Ledger()

    def run(self, min_nodes: int) -> RunHistory:
        """Train for all rounds and return what came of it.

        Parameters
        ----------
        min_nodes : int
            Nodes to wait for.

        Raises
        ------
        PslError
            If the run cannot go on.
        """
        keep_freed_memory()
        strategy, ledger = self._strategy, self._ledger
        store = strategy.checkpoints and CheckpointStore(strategy.checkpoints)
        saved = store and store.newest()
        participants = self._gather(min_nodes, saved or None)
        if strategy.client_strategy is not None:
            with_data = [count for count in participants.num_examples.values() if count]
            check_clients(strategy.client_strategy, len(with_data))
        attendance = Attendance(self._transport, participants, strategy.failures, ledger)
        plan = RoundPlan(
            strategy.sampler, participants.num_examples, ledger, strategy.steps_per_round
        )
        plan.start_round(1)
        stepper = make_step(
            strategy,
            self._model,
            self._transport,
            attendance.nodes,
            self._aggregation,
            total_steps=plan.num_steps * self._num_rounds,
        )
        report = self._report(stepper, participants, attendance)
        records = RecorderState(strategy.recorder, self._info(participants), self._transport)
        announce(records.info, self._model.client, plan.num_steps)
        saver = store and self._saver(store, stepper, plan, attendance, participants, records)
        at = Version(1, 0)
        if saver and saved:
            at = saver.resume(saved)
            stepper.leave_out(away := absent(participants))
            attendance.note(away)
            ledger.end_rests()
            saver.restore_devices()
            if ledger.server_round == at.server_round:
                plan.resume()
        else:
            records.start()
            report.close_round(0, seconds=0.0)
            if saver:
                saver.save(at)
        with Saving(saver or None, ledger) as saving:
            training = self._training(stepper, plan, attendance, saving)
            for server_round in range(at.server_round, self._num_rounds + 1):
                self._run_round(server_round, training, plan, report, saving)
        return self._finish(records)

    def _gather(self, min_nodes: int, saved: Saved | None) -> Participants:
        strategy = self._strategy
        sync, checkpoints = strategy.client_sync, strategy.checkpoints
        participants = gather(
            self._transport,
            self._model.client,
            min_nodes=min_nodes,
            node_timeout_s=strategy.node_timeout_s,
            describe_timeout_s=strategy.failures.step_timeout_s,
            need_optimizers=sync != "step",
            need_states=checkpoints is not None
            and (sync == "none" or (sync == "round" and checkpoints.every_steps is not None)),
        )
        return participants if saved is None else rejoined(participants, saved)

    def _saver(
        self,
        store: CheckpointStore,
        stepper: StepTaker,
        plan: RoundPlan,
        attendance: Attendance,
        participants: Participants,
        records: RecorderState,
    ) -> RunSaver:
        strategy = self._strategy
        return RunSaver(
            store,
            {
                "learner": stepper.learner,
                **stepper.parts,
                "ledger": LedgerState(self._ledger, participants.nodes),
                "history": self._history,
                "records": records,
            },
            DeviceStates(
                self._transport,
                attendance.nodes,
                stepper,
                self._ledger,
                seed=strategy.seed,
                timeout_s=strategy.failures.step_timeout_s,
            ),
            clients=client_list(participants),
            identity=identity_of(
                strategy,
                self._model,
                stepper.learner.recipe,
                participants.num_examples,
                plan.num_steps * self._num_rounds,
            ),
            environment=environment(torch.device(strategy.device)),
        )

    def _training(
        self, stepper: StepTaker, plan: RoundPlan, attendance: Attendance, saving: Saving
    ) -> RoundTraining:
        return RoundTraining(
            stepper,
            plan,
            attendance,
            self._strategy.failures,
            self._ledger,
            # A message costs a node seconds, however little is asked.
            at_each_step=self._transport.name != "messages",
            watch=RunWatch(self._strategy.recorder, self._progress, saving),
        )

    def _run_round(
        self,
        server_round: int,
        training: RoundTraining,
        plan: RoundPlan,
        report: RoundReport,
        saving: Saving,
    ) -> None:
        """Train for a round, or the rest of one."""
        started, ledger = time.monotonic(), self._ledger
        is_back = training.begin()
        try:
            if ledger.server_round != server_round:
                plan.start_round(server_round)
            elif is_back or ledger.plan_is_stale:
                plan.redraw()
            self._progress.start_round(server_round, plan.num_steps, ledger.step)
            training.run(partial(self._timeout_s, started + self._round_timeout_s))
            self._progress.end_round()
            report.close_round(server_round, seconds=time.monotonic() - started)
        except TornError as torn:  # what is there belongs to no step, and is not saved
            raise torn.cause from torn
        except PslError:
            saving.before_stop(server_round)
            raise
        saving.between_rounds(is_last=server_round == self._num_rounds)

    def _finish(self, records: RecorderState) -> RunHistory:
        strategy, history = self._strategy, self._history
        # Without a common client segment there is no whole model.
        whole = strategy.client_sync != "none"
        history.state_dict = (self._model if whole else self._model.server).state_dict()
        if strategy.recorder is not None:
            summary = strategy.recorder.finish(
                history.state_dict, records.refused, self._ledger.failures
            )
            _LOG.info("results are in %s", summary.parent)
        return history

    def _report(
        self, stepper: StepTaker, participants: Participants, attendance: Attendance
    ) -> RoundReport:
        return RoundReport(
            strategy=self._strategy,
            model=self._model,
            transport=self._transport,
            participants=participants,
            attendance=attendance,
            stepper=stepper,
            ledger=self._ledger,
            history=self._history,
            num_rounds=self._num_rounds,
            evaluate_fn=self._evaluate_fn,
        )

    def _info(self, participants: Participants) -> RunInfo:
        strategy = self._strategy
        return RunInfo(
            method=strategy.method,
            sampler=strategy.sampler_name,
            sampler_details=strategy.sampler_details(participants.num_examples),
            model=strategy.model_name or "model",
            cut=self._model.at,
            num_clients=len(participants.nodes),
            num_examples=sum(participants.num_examples.values()),
            rounds=self._num_rounds,
            transport=self._transport.name,
            seed=strategy.seed,
        )

    def _timeout_s(self, deadline: float, where: str) -> float:
        """Return the bound on the next exchange, so that the round's holds too."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise WaitError(
                f"{where}: the round took longer than {self._round_timeout_s:g} s; raise the "
                "timeout given to start(), or bound the round by steps_per_round"
            )
        return min(self._strategy.failures.step_timeout_s, left_s)
