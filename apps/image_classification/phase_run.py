"""What every kind of training gets to run one phase, and how it records a round."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch import nn

from flower_psl import RoundRecord, RunInfo, RunRecorder, StepRecord

from .config import AppConfig
from .data import ImageData
from .phases import Phase

logger = logging.getLogger("flwr.psl")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord]


@dataclass(frozen=True, kw_only=True)
class PhaseRun:
    """One phase of a run.

    Attributes
    ----------
    grid : Grid
    config : AppConfig
        Its seed is that of the phase.
    phase : Phase
    images : ImageData
    model : nn.Module
        With the weights that the phase begins with; not to be changed.
    evaluate_fn : callable
        Central evaluation.
    recorder : RunRecorder or None
    """

    grid: Grid
    config: AppConfig
    phase: Phase
    images: ImageData
    model: nn.Module
    evaluate_fn: EvaluateFn
    recorder: RunRecorder | None

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays that the phase begins with."""
        return ArrayRecord(self.model.state_dict())

    def start_records(self, *, num_clients: int, num_examples: int, transport: str) -> None:
        """Start the records of a phase that does not cut the model."""
        if self.recorder is not None:
            info = RunInfo(
                method=self.phase.name,
                sampler="none",
                model=self.config.model,
                cut="none",
                num_clients=num_clients,
                num_examples=num_examples,
                rounds=self.phase.num_rounds,
                transport=transport,
                seed=self.config.seed,
            )
            self.recorder.start(info)

    def record_step(self, record: StepRecord) -> None:
        """Record a step."""
        if self.recorder is not None:
            self.recorder.record_step(record)

    def record_round(
        self,
        server_round: int,
        metrics: MetricRecord,
        *,
        steps: int = 0,
        train_loss: float | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Record and log a round, with what its evaluation has found."""
        accuracy, loss = (cast(float, metrics[name]) for name in ("accuracy", "loss"))
        if self.recorder is not None:
            record = RoundRecord(
                server_round=server_round,
                steps=steps,
                train_loss=train_loss,
                accuracy=accuracy,
                loss=loss if math.isfinite(loss) else None,
                seconds=seconds,
            )
            self.recorder.record_round(record)
        shown = "" if train_loss is None else f"train loss {train_loss:.4f}, "
        logger.info(
            "[ROUND %d/%d] %stest loss %.4f, test accuracy %.4f, %d steps in %.1f s",
            *(server_round, self.phase.num_rounds, shown, loss, accuracy, steps, seconds),
        )
