"""What the benchmarks train: a small CNN on 32x32 images, 512 a client, batches of 128.

The images are random: a step takes as long on noise as on photographs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import GlobalSampler, ParallelSplitLearning, SplitClient, cut

EXAMPLES_PER_CLIENT = 512
BATCH_SIZE = 128
CUT = "block1"
SEED = 0


def build_model() -> nn.Sequential:
    """Return the model, the same weights every time."""

    def block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.GroupNorm(8, channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    model = nn.Sequential()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for index, (channels_in, channels_out) in enumerate([(3, 32), (32, 64), (64, 128)], 1):
            model.add_module(f"block{index}", block(channels_in, channels_out))
        model.add_module("flatten", nn.Flatten())
        model.add_module("head", nn.Linear(128 * 4 * 4, 10))
    return model


def client_data(key: int) -> tuple[Tensor, Tensor]:
    """Return one client's images ``(N, 3, 32, 32)`` and labels ``(N,)``."""
    draws = torch.Generator().manual_seed(SEED + key)
    images = torch.randn(EXAMPLES_PER_CLIENT, 3, 32, 32, generator=draws)
    return images, torch.randint(0, 10, (EXAMPLES_PER_CLIENT,), generator=draws)


def build_client(key: int) -> SplitClient:
    """Return one client."""
    return SplitClient(cut(build_model(), at=CUT).client, TensorDataset(*client_data(key)))


def build_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Return the reference's optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def build_sampler() -> GlobalSampler:
    """Return the sampler."""
    return GlobalSampler(batch_size=BATCH_SIZE, seed=SEED)


def build_strategy(**settings: Any) -> ParallelSplitLearning:
    """Return the strategy with the same optimizer; `settings` are fields of it."""
    return ParallelSplitLearning(
        model=cut(build_model(), at=CUT),
        sampler=build_sampler(),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        seed=SEED,
        **settings,
    )
