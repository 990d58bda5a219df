"""One training run, split or centralized, from the same weights and with one optimizer."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import TensorDataset

from flower_psl import ParallelSplitLearning, Sampler, SplitClient, cut, run_in_process
from simulations.dirichlet import Parts
from simulations.image_data import ImageData
from simulations.models import MODELS, initial_model
from simulations.result_store import Row

_EVALUATION_BATCH = 500
_MOMENTUM = 0.9

COLUMNS = ("round", "accuracy", "loss", "steps", "mean_batch", "max_batch", "seconds")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What split and centralized training have in common.

    Attributes
    ----------
    data : ImageData
        The pooled data.
    model : str
        A key of `MODELS`.
    batch_size : int
        The global batch size B.
    rounds : int
        Passes over the data.
    learning_rate : float
        Of the first step; it falls to zero along a cosine.
    seed : int
        Of the weights and of all draws.
    """

    data: ImageData
    model: str
    batch_size: int
    rounds: int
    learning_rate: float
    seed: int

    def split(self, sampler: Sampler, parts: Parts) -> list[Row]:
        """Train in process, each client with its part, and return a row a round.

        Parameters
        ----------
        sampler : Sampler
            Makes the schedules.
        parts : list of NDArray[int64]
            The places of each client's examples in the pooled data.
        """
        model = self.initial_model()
        split = cut(model, at=MODELS[self.model][1])
        clients = {
            key: SplitClient(
                split.client,
                TensorDataset(self.data.train_images[part], self.data.train_labels[part]),
            )
            for key, part in enumerate(parts)
        }
        strategy = ParallelSplitLearning(
            model=split,
            sampler=sampler,
            loss_fn=functional.cross_entropy,
            optimizer_fn=self.optimizer,
            lr_scheduler_fn=cosine,
            seed=self.seed,
        )
        num_examples = {key: len(part) for key, part in enumerate(parts)}
        rows: list[Row] = []
        started = time.monotonic()

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            seconds = time.monotonic() - started
            model.load_state_dict(arrays.to_torch_state_dict())
            sizes = sampler.schedule(num_examples, max(1, server_round)).effective_batch_sizes
            rows.append(self._row(server_round, model, sizes.tolist(), seconds))
            return MetricRecord()

        run_in_process(
            strategy,
            clients,
            ArrayRecord(model.state_dict()),
            num_rounds=self.rounds,
            timeout=math.inf,
            evaluate_fn=evaluate,
        )
        return rows

    def centralized(self) -> list[Row]:
        """Train on the pooled data, shuffled anew in every round, and return a row a round."""
        model = self.initial_model()
        sizes = [len(rows) for rows in self.shuffled_batches(1)]
        optimizer = self.optimizer(model.parameters())
        scheduler = cosine(optimizer, len(sizes) * self.rounds)
        started = time.monotonic()
        rows = [self._row(0, model, sizes, 0.0)]
        for number in range(1, self.rounds + 1):
            for batch in self.shuffled_batches(number):
                images, labels = self.data.train_images[batch], self.data.train_labels[batch]
                take_step(model, optimizer, images, labels)
                scheduler.step()
            rows.append(self._row(number, model, sizes, time.monotonic() - started))
        return rows

    def initial_model(self) -> nn.Module:
        """Return the model with the seed's weights."""
        _, channels, pixels, _ = self.data.train_images.shape
        return initial_model(self.model, channels, pixels, self.seed)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> SGD:
        """Return the optimizer of all runs."""
        return SGD(parameters, lr=self.learning_rate, momentum=_MOMENTUM)

    def shuffled_batches(self, number: int) -> Iterator[Tensor]:
        """Yield the places of the examples of each centralized batch of a round."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.data.train_labels))
        return iter(torch.split(torch.from_numpy(order), self.batch_size))

    def _row(self, number: int, model: nn.Module, sizes: list[int], seconds: float) -> Row:
        accuracy, loss = evaluated(model, self.data.test_images, self.data.test_labels)
        return {
            "round": number,
            "accuracy": accuracy,
            "loss": loss,
            "steps": len(sizes),
            "mean_batch": sum(sizes) / len(sizes),
            "max_batch": max(sizes),
            "seconds": seconds,
        }


def take_step(model: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor) -> None:
    """Take one step of a plain PyTorch loop."""
    optimizer.zero_grad()
    functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def cosine(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Let the learning rate fall to zero along half a cosine."""
    return LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2
    )


@torch.no_grad()
def evaluated(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy, in [0, 1], and mean cross-entropy.

    Parameters
    ----------
    model : nn.Module
        It is put into evaluation mode for the time being.
    images : Tensor, shape (N, C, H, W)
    labels : Tensor, shape (N,)
    """
    model.eval()
    batches = [torch.split(tensor, _EVALUATION_BATCH) for tensor in (images, labels)]
    right, loss = 0, 0.0
    for some, expected in zip(*batches, strict=True):
        outputs = model(some)
        right += int((outputs.argmax(1) == expected).sum())
        loss += float(functional.cross_entropy(outputs, expected, reduction="sum"))
    model.train()
    return right / len(labels), loss / len(labels)
