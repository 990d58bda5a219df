"""What a benchmark trains: a model, where it is cut, data, and who gives how much."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import ParallelSplitLearning, Sampler, SplitClient, cut

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One kind of training, the same weights and data every time.

    Attributes
    ----------
    layers : callable
        Makes the model.
    cut : str
        The last layer of the client segment.
    example_shape : tuple of int
        Shape of an input. Inputs are random: a step takes as long on noise as on photographs.
    num_classes : int
        Classes of the labels.
    examples_per_client : int
        Examples that a client has.
    sampler : Sampler
        Makes the batch-size schedules.
    """

    layers: Callable[[], nn.Sequential]
    cut: str
    example_shape: tuple[int, ...]
    num_classes: int
    examples_per_client: int
    sampler: Sampler

    def build_model(self) -> nn.Sequential:
        """Return the model."""
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            return self.layers()

    def client_data(self, key: int) -> tuple[Tensor, Tensor]:
        """Return one client's inputs ``(N, *example_shape)`` and labels ``(N,)``."""
        draws = torch.Generator().manual_seed(_SEED + key)
        count = self.examples_per_client
        inputs = torch.randn(count, *self.example_shape, generator=draws)
        return inputs, torch.randint(0, self.num_classes, (count,), generator=draws)

    def build_client(self, key: int) -> SplitClient:
        """Return one client."""
        segment = cut(self.build_model(), at=self.cut).client
        return SplitClient(segment, TensorDataset(*self.client_data(key)))

    @staticmethod
    def build_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        """Return the optimizer, of split training and of the plain loop."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def build_strategy(self, **settings: Any) -> ParallelSplitLearning:
        """Return the strategy; `settings` are fields of it."""
        return ParallelSplitLearning(
            model=cut(self.build_model(), at=self.cut),
            sampler=self.sampler,
            loss_fn=nn.CrossEntropyLoss(),
            optimizer_fn=self.build_optimizer,
            fraction_evaluate=0.0,
            seed=_SEED,
            **settings,
        )
