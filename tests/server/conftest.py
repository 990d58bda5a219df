"""A small model, cut in two, and three clients that train it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import (
    GlobalSampler,
    ParallelSplitLearning,
    SplitClient,
    SplitModel,
    cut,
)

NUM_EXAMPLES = {2: 7, 5: 4, 9: 10}
NUM_TEST_EXAMPLES = {2: 3, 5: 0, 9: 5}


def build_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def build_data(counts: Mapping[int, int], seed: int) -> dict[int, TensorDataset]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: TensorDataset(
            torch.randn(count, 6, dtype=torch.float64, generator=generator),
            torch.randint(3, (count,), generator=generator),
        )
        for key, count in counts.items()
    }


class Strategies(Protocol):
    def __call__(self, **changes: Any) -> ParallelSplitLearning: ...


@pytest.fixture
def model() -> nn.Sequential:
    return build_model()


@pytest.fixture
def split(model: nn.Sequential) -> SplitModel:
    return cut(model, at="1")


@pytest.fixture
def train_sets() -> dict[int, TensorDataset]:
    return build_data(NUM_EXAMPLES, seed=1)


@pytest.fixture
def test_sets() -> dict[int, TensorDataset]:
    return build_data(NUM_TEST_EXAMPLES, seed=2)


@pytest.fixture
def clients(
    train_sets: dict[int, TensorDataset], test_sets: dict[int, TensorDataset]
) -> dict[int, SplitClient]:
    return {
        key: SplitClient(
            cut(build_model(), at="1").client, train_sets[key], test_sets[key], optimizer_fn=sgd
        )
        for key in NUM_EXAMPLES
    }


@pytest.fixture
def arrays(model: nn.Sequential) -> ArrayRecord:
    return ArrayRecord(model.state_dict())


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


@pytest.fixture
def make_strategy(split: SplitModel) -> Callable[..., ParallelSplitLearning]:
    """Make a strategy with its arguments replaced by name."""

    def make(**changes: Any) -> ParallelSplitLearning:
        settings: dict[str, Any] = {
            "model": split,
            "sampler": GlobalSampler(batch_size=8, seed=0),
            "loss_fn": functional.cross_entropy,
            "optimizer_fn": sgd,
        }
        return ParallelSplitLearning(**(settings | changes))

    return make
