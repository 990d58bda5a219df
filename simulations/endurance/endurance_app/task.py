"""Digits, dealt out evenly; the runs with failures and the one without train the same."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import GlobalSampler, ParallelSplitLearning, SplitClient, SplitModel, cut

NUM_CLIENTS = 4
BATCH_SIZE = 64

_TEST_EXAMPLES = 360


def initial_model(seed: int) -> nn.Sequential:
    """Return the model, with weights that depend on the seed only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        front = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(
            *front, nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
        )


def split_model(seed: int) -> SplitModel:
    """Return the model, cut behind its convolution."""
    return cut(initial_model(seed), at="2")


def build_client(key: int, seed: int, pace_s: float = 0.0) -> SplitClient:
    """Return one client, with every fourth of the training examples.

    Parameters
    ----------
    key : int
        The client.
    seed : int
        Of the model's weights.
    pace_s : float
        The least time from one pass to the next, forward and backward, in seconds.
    """
    segment = split_model(seed).client
    pace = _Pace(pace_s)
    segment.register_forward_hook(lambda *_: pace.wait())
    segment.register_full_backward_hook(lambda *_: pace.wait())
    images, labels = _digits()
    part = slice(_TEST_EXAMPLES + key, None, NUM_CLIENTS)
    return SplitClient(segment, TensorDataset(images[part], labels[part]))


class _Pace:
    """Keeps events apart, in time that does not depend on how busy the machine is."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = -math.inf

    def wait(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._seconds


def build_strategy(seed: int, **settings: Any) -> ParallelSplitLearning:
    """Return the strategy; `settings` are fields of it."""

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    return ParallelSplitLearning(
        model=split_model(seed),
        sampler=GlobalSampler(batch_size=BATCH_SIZE, seed=seed),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=optimizer,
        seed=seed,
        **settings,
    )


def evaluation(num_rounds: int) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Return a central evaluation on the test examples, after the last round."""
    model = initial_model(0)
    images, labels = (part[:_TEST_EXAMPLES] for part in _digits())

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round < num_rounds:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            hits = model.eval()(images).argmax(1) == labels
        return MetricRecord({"accuracy": float(hits.double().mean())})

    return evaluate


def _digits() -> tuple[Tensor, Tensor]:
    """Return all images ``(1797, 1, 8, 8)``, values from 0 to 1, and their labels, shuffled."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(digits.target)[order]
