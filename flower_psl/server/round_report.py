"""What a round came to: evaluation, metrics, records and a line in the log."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from flower_psl.server.attendance import Attendance
from flower_psl.server.ledger import Ledger
from flower_psl.server.participants import Participants
from flower_psl.server.run_history import Metrics, RunHistory, StateDict
from flower_psl.server.split_evaluation import SplitEvaluation, sample_clients
from flower_psl.server.split_step import StepTaker
from flower_psl.split import SplitModel
from flower_psl.telemetry import RoundRecord
from flower_psl.transport import Transport

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning

_LOG = logging.getLogger("flwr.psl")

EvaluateFn = Callable[[int, StateDict], Metrics | None]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """Evaluates the model after a round, and writes down what the round came to.

    Attributes
    ----------
    strategy : ParallelSplitLearning
        The run's settings.
    model : SplitModel
        The model.
    transport : Transport
        What reaches the clients.
    participants : Participants
        The clients.
    attendance : Attendance
        Knows who is there.
    stepper : StepTaker
        What trained.
    ledger : Ledger
        What happened.
    history : RunHistory
        Gets the metrics.
    num_rounds : int
        Rounds of the run.
    evaluate_fn : callable or None
        Central evaluation of a whole model's state dict.
    """

    strategy: "ParallelSplitLearning"
    model: SplitModel
    transport: Transport
    participants: Participants
    attendance: Attendance
    stepper: StepTaker
    ledger: Ledger
    history: RunHistory
    num_rounds: int
    evaluate_fn: EvaluateFn | None

    def close_round(self, server_round: int, *, seconds: float) -> None:
        """Evaluate, record and log.

        Parameters
        ----------
        server_round : int
            The round that has ended; 0 is before the first.
        seconds : float
            How long it trained.

        Raises
        ------
        PslError
            If too few clients are left after evaluation.
        """
        if server_round:
            self.history.train[server_round] = self._train_metrics()
            self._evaluate_over_the_cut(server_round)
        if self.evaluate_fn is not None:
            metrics = self.evaluate_fn(server_round, self.model.state_dict())
            if metrics is not None:
                self.history.central_evaluation[server_round] = metrics
        self._write(server_round, seconds)

    def _not_seen(self) -> int:
        return sum(self.participants.num_examples.values()) - sum(self.ledger.used.values())

    def _train_metrics(self) -> Metrics:
        used = sum(self.ledger.used.values())
        loss: Metrics = {"loss": self.ledger.loss_sum / used} if used else {}
        return loss | {
            "num-examples": used,
            "num-steps": self.ledger.step,
            "not-seen": self._not_seen(),
            "redrawn": self.ledger.redrawn,
        }

    def _evaluate_over_the_cut(self, server_round: int) -> None:
        strategy, participants = self.strategy, self.participants
        keys = sample_clients(
            participants.num_test_examples,
            strategy.fraction_evaluate,
            strategy.seed,
            server_round,
        )
        if not keys:
            return
        evaluation = SplitEvaluation(
            transport=self.transport,
            nodes=self.attendance.nodes,
            num_examples=participants.num_test_examples,
            loss_fn=strategy.loss_fn,
            batch_size=strategy.evaluate_batch_size,
            seed=strategy.seed,
            device=torch.device(strategy.device),
            encodings=strategy.encodings,
            apart=self.stepper.apart,
        )
        weights = self.stepper.learner.client_weights(strategy.encodings.weights)
        there = [key for key in keys if key not in self.ledger.out]
        metrics, failures = evaluation.run(
            self.model, weights, there, server_round, strategy.failures.step_timeout_s
        )
        if missing := sorted({*keys} - {*there} | {*failures}):
            metrics["missing-clients"] = missing
        self.history.split_evaluation[server_round] = metrics
        self.attendance.leave_out(failures)

    def _write(self, server_round: int, seconds: float) -> None:
        """Record and log the round, with central metrics before those of the clients."""
        history, ledger = self.history, self.ledger
        train = history.train.get(server_round, {})
        test = history.central_evaluation.get(server_round) or history.split_evaluation.get(
            server_round, {}
        )
        accuracy, loss = _number(test, "accuracy"), _number(test, "loss")
        train_loss = _number(train, "loss")
        shown = {"train loss": train_loss, "test loss": loss, "test accuracy": accuracy}
        parts = [f"{name} {value:.4f}" for name, value in shown.items() if value is not None]
        if server_round:
            parts.append(f"{ledger.step} steps in {seconds:.1f} s")
        if server_round and ledger.plan:
            parts.append(f"{self._not_seen()} examples not seen")
        if parts:
            _LOG.info("[ROUND %d/%d] %s", server_round, self.num_rounds, ", ".join(parts))
        if self.strategy.recorder is None:
            return
        counts = self.participants.num_examples
        record = RoundRecord(
            server_round=server_round,
            steps=ledger.step,
            train_loss=train_loss,
            accuracy=accuracy,
            loss=loss,
            seconds=seconds,
        )
        if server_round:
            record = replace(
                record,
                not_seen=self._not_seen(),
                redrawn=ledger.redrawn,
                inclusion={
                    key: ledger.used[key] / count for key, count in counts.items() if count
                },
                bytes_up=ledger.discarded_bytes_up,
                bytes_down=ledger.discarded_bytes_down,
            )
        self.strategy.recorder.record_round(record)


def _number(metrics: Metrics, name: str) -> float | None:
    """Return a metric for the records, which hold finite numbers only."""
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
