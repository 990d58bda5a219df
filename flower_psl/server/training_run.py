"""A whole run: who takes part, its rounds, their steps, evaluation and records."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch

from flower_psl.errors import ConfigError, WaitError
from flower_psl.sampling import BatchSchedule
from flower_psl.server.client_aggregation import ClientAggregation
from flower_psl.server.make_step import make_step
from flower_psl.server.participants import Participants, gather
from flower_psl.server.run_history import Metrics, RunHistory, StateDict
from flower_psl.server.split_evaluation import SplitEvaluation, sample_clients
from flower_psl.server.split_step import StepTaker
from flower_psl.server.step_plan import step_plans, with_next
from flower_psl.split import SplitModel, batch_norm_layers
from flower_psl.telemetry import Progress, RoundRecord, RunInfo
from flower_psl.transport import Transport

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning

_LOG = logging.getLogger("flwr.psl")

EvaluateFn = Callable[[int, StateDict], Metrics | None]


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
        self._device = torch.device(strategy.device)
        self._progress = Progress(num_rounds, log=_LOG.info)
        self._history = RunHistory()

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
        strategy, history = self._strategy, self._history
        participants = gather(
            self._transport,
            self._model.client,
            min_nodes=min_nodes,
            node_timeout_s=strategy.node_timeout_s,
            describe_timeout_s=strategy.step_timeout_s,
            need_optimizers=strategy.client_sync != "step",
        )
        schedule = self._plan(participants, 1)
        stepper = make_step(
            strategy,
            self._model,
            self._transport,
            participants,
            self._aggregation,
            total_steps=self._num_steps(schedule) * self._num_rounds,
        )
        self._announce(participants, schedule)
        self._evaluate(0, stepper, participants, started=time.monotonic(), steps=0)
        for server_round in range(1, self._num_rounds + 1):
            started = time.monotonic()
            if server_round > 1:
                schedule = self._plan(participants, server_round)
            self._train(server_round, schedule, stepper, participants)
            self._evaluate(server_round, stepper, participants, started, self._num_steps(schedule))
        # Without a common client segment there is no whole model.
        whole = strategy.client_sync != "none"
        history.state_dict = (self._model if whole else self._model.server).state_dict()
        if strategy.recorder is not None:
            summary = strategy.recorder.finish(history.state_dict, self._transport.refused)
            _LOG.info("results are in %s", summary.parent)
        return history

    def _plan(self, participants: Participants, server_round: int) -> BatchSchedule:
        schedule = self._strategy.sampler.schedule(participants.num_examples, server_round)
        if not isinstance(schedule, BatchSchedule):
            raise ConfigError(
                f"the sampler's schedule for round {server_round} is a "
                f"{type(schedule).__name__}; it must be a BatchSchedule, such as "
                "BatchSchedule.from_steps(steps, num_examples) makes"
            )
        unknown = [key for key in schedule.client_keys if key not in participants.nodes]
        if unknown:
            raise ConfigError(
                f"the sampler's schedule for round {server_round} names the clients {unknown}; "
                f"the run has {list(participants.nodes)}. Use only the keys that the sampler is "
                "given."
            )
        return schedule

    def _num_steps(self, schedule: BatchSchedule) -> int:
        return min(len(schedule), self._strategy.steps_per_round or len(schedule))

    def _announce(self, participants: Participants, schedule: BatchSchedule) -> None:
        strategy = self._strategy
        info = RunInfo(
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
        _LOG.info(
            "%d clients with %d examples; %d rounds of %d steps; %s, cut at %r, over %s",
            info.num_clients,
            info.num_examples,
            info.rounds,
            self._num_steps(schedule),
            info.sampler,
            info.cut,
            info.transport,
        )
        if layers := list(batch_norm_layers(self._model.client)):
            _LOG.warning(
                "BatchNorm in the client segment (%s) normalizes over each client's own part of "
                "the batch, so training differs from centralized training and a part of one "
                "example is fragile: to_group_norm(model) replaces it, and "
                "GlobalSampler(min_client_batch=...) keeps parts from being small",
                ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else ""),
            )
        if strategy.recorder is not None:
            strategy.recorder.start(info)

    def _train(
        self,
        server_round: int,
        schedule: BatchSchedule,
        stepper: StepTaker,
        participants: Participants,
    ) -> None:
        """Take the steps of one round."""
        strategy = self._strategy
        deadline = time.monotonic() + self._round_timeout_s
        num_steps = self._num_steps(schedule)
        self._progress.start_round(server_round, num_steps)
        total_loss, num_examples = 0.0, 0
        plans = step_plans(server_round, schedule, participants.num_examples)
        for plan, ahead in with_next(islice(plans, num_steps)):
            timeout_s = partial(self._timeout_s, deadline, str(plan))
            record = stepper.run(plan, timeout_s, ahead)
            total_loss += record.loss * record.effective_batch_size
            num_examples += record.effective_batch_size
            if strategy.recorder is not None:
                strategy.recorder.record_step(record)
            self._progress.step(plan.step, record.loss)
        self._progress.end_round()
        self._history.train[server_round] = {
            "loss": total_loss / num_examples,
            "num-examples": num_examples,
            "num-steps": num_steps,
        }

    def _timeout_s(self, deadline: float, where: str) -> float:
        """Return the bound on the next exchange, so that the round's holds too."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise WaitError(
                f"{where}: the round took longer than {self._round_timeout_s:g} s; raise the "
                "timeout given to start(), or bound the round by steps_per_round"
            )
        return min(self._strategy.step_timeout_s, left_s)

    def _evaluate(
        self,
        server_round: int,
        stepper: StepTaker,
        participants: Participants,
        started: float,
        steps: int,
    ) -> None:
        """Evaluate centrally and over the cut, and close the round's records."""
        history, strategy = self._history, self._strategy
        seconds = time.monotonic() - started
        keys = sample_clients(
            participants.num_test_examples,
            strategy.fraction_evaluate if server_round else 0.0,
            strategy.seed,
            server_round,
        )
        if keys:
            evaluation = SplitEvaluation(
                transport=self._transport,
                participants=participants,
                loss_fn=strategy.loss_fn,
                batch_size=strategy.evaluate_batch_size,
                seed=strategy.seed,
                device=self._device,
                encodings=strategy.encodings,
                apart=stepper.apart,
            )
            weights = stepper.learner.client_weights(strategy.encodings.weights)
            history.split_evaluation[server_round] = evaluation.run(
                self._model, weights, keys, server_round, strategy.step_timeout_s
            )
        if self._evaluate_fn is not None:
            metrics = self._evaluate_fn(server_round, self._model.state_dict())
            if metrics is not None:
                history.central_evaluation[server_round] = metrics
        self._close_round(server_round, steps, seconds)

    def _close_round(self, server_round: int, steps: int, seconds: float) -> None:
        """Record and log the round, with central metrics before those of the clients."""
        history = self._history
        train = history.train.get(server_round, {})
        test = history.central_evaluation.get(server_round) or history.split_evaluation.get(
            server_round, {}
        )
        accuracy, loss = _number(test, "accuracy"), _number(test, "loss")
        train_loss = _number(train, "loss")
        shown = {"train loss": train_loss, "test loss": loss, "test accuracy": accuracy}
        parts = [f"{name} {value:.4f}" for name, value in shown.items() if value is not None]
        if server_round:
            parts.append(f"{steps} steps in {seconds:.1f} s")
        if parts:
            _LOG.info("[ROUND %d/%d] %s", server_round, self._num_rounds, ", ".join(parts))
        if self._strategy.recorder is not None:
            self._strategy.recorder.record_round(
                RoundRecord(
                    server_round=server_round,
                    steps=steps,
                    train_loss=train_loss,
                    accuracy=accuracy,
                    loss=loss,
                    seconds=seconds,
                )
            )


def _number(metrics: Metrics, name: str) -> float | None:
    """Return a metric for the records, which hold finite numbers only."""
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
