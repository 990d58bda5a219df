"""Training on the pooled data by a plain loop: what every method is measured against."""

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from flower_psl import StepRecord

from .config import AppConfig
from .optimizers import OPTIMIZERS, SCHEDULES
from .phase_run import PhaseRun


def train_centralized(run: PhaseRun) -> Result:
    """Train on the server, which has all training data; no device is asked for anything."""
    examples = run.images.train_set()
    loop = PlainLoop(run, num_examples=len(examples))
    run.start_records(num_clients=0, num_examples=len(examples), transport="none")
    result = Result(evaluate_metrics_serverapp={0: run.evaluate_fn(0, run.arrays)})
    run.record_round(0, result.evaluate_metrics_serverapp[0])
    for server_round in range(1, run.phase.num_rounds + 1):
        started = time.monotonic()
        losses, sizes = [], []
        batches = _batches(examples, run.config, server_round)
        for step, (images, labels) in enumerate(batches, 1):
            began = time.monotonic()
            losses.append(loop.step(images, labels))
            sizes.append(len(labels))
            run.record_step(
                StepRecord(
                    server_round=server_round,
                    step=step,
                    loss=losses[-1],
                    effective_batch_size=len(labels),
                    clients={},
                    bytes_up=0,
                    bytes_down=0,
                    seconds={"total": time.monotonic() - began},
                )
            )
        seconds = time.monotonic() - started
        loss = float(np.average(losses, weights=sizes))
        result.arrays = ArrayRecord(loop.model.state_dict())
        result.train_metrics_clientapp[server_round] = MetricRecord(
            {"loss": loss, "num-examples": sum(sizes), "num-steps": len(sizes)}
        )
        metrics = run.evaluate_fn(server_round, result.arrays)
        result.evaluate_metrics_serverapp[server_round] = metrics
        run.record_round(server_round, metrics, steps=len(sizes), train_loss=loss, seconds=seconds)
    return result


class PlainLoop:
    """A model, its optimizer and its learning-rate schedule.

    Parameters
    ----------
    run : PhaseRun
        With the weights to begin with, of which the loop trains a copy.
    num_examples : int
        Training examples of a round.

    Attributes
    ----------
    model : nn.Module
    """

    def __init__(self, run: PhaseRun, *, num_examples: int) -> None:
        self._config = config = run.config
        self.model = copy.deepcopy(run.model).to(config.device).train()
        self._loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._optimizer: Optimizer = OPTIMIZERS[config.optimizer](config, self.model.parameters())
        steps = -(-num_examples // config.batch_size)
        total = min(steps, config.steps_per_round or steps) * run.phase.num_rounds
        make = SCHEDULES[config.learning_rate_schedule]
        self._schedule: LRScheduler | None = make and make(self._optimizer, total)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take one step and return its loss."""
        device = self._config.device
        loss = self._loss_fn(self.model(images.to(device)), labels.to(device))
        self._optimizer.zero_grad()
        loss.backward()
        if self._config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        return float(loss.item())


def _batches(
    examples: TensorDataset, config: AppConfig, server_round: int
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = examples.tensors
    random = np.random.default_rng([config.seed, server_round])
    order = torch.from_numpy(random.permutation(len(labels)))
    batches = torch.split(order, config.batch_size)
    for some in batches[: config.steps_per_round or None]:
        yield images[some], labels[some]
