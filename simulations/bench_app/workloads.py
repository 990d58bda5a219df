"""The benchmarks' workloads, by name."""

from collections import OrderedDict

from torch import nn

from flower_psl import FixedLocalSampler, GlobalSampler

from .growing_batch_sampler import GrowingBatchSampler
from .workload import Workload


def _cnn() -> nn.Sequential:
    """Return a small CNN with a group norm in each of its three blocks."""

    def block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.GroupNorm(8, channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    head = nn.Sequential(nn.Flatten(), nn.Linear(128 * 4 * 4, 10))
    return nn.Sequential(
        OrderedDict(block1=block(3, 32), block2=block(32, 64), block3=block(64, 128), head=head)
    )


def _light() -> nn.Sequential:
    """Return a model that computes next to nothing on activations of 4 KB an example."""
    front = nn.Sequential(nn.Linear(8, 1024), nn.ReLU())
    return nn.Sequential(OrderedDict(front=front, head=nn.Linear(1024, 10)))


def _two_convolutions() -> nn.Sequential:
    """Return the CNN that the peers' published throughput is of, cut behind its first half."""

    def half(channels_in: int, channels_out: int) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        return nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))

    head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 8 * 8, 10))
    return nn.Sequential(OrderedDict(front=half(3, 32), back=half(32, 64), head=head))


def _wide() -> nn.Sequential:
    """Return a model of few weights with activations of 256 KB an example."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(front=nn.Conv2d(1, 10, 1), pool=pool, head=nn.Linear(10, 2)))


# From 256 KB of activations to 65.5 MB: see `_wide`.
WIDE_BATCHES = (1, 4, 16, 64, 256)

WORKLOADS = {
    "cnn": Workload(
        layers=_cnn,
        cut="block1",
        example_shape=(3, 32, 32),
        num_classes=10,
        examples_per_client=512,
        sampler=GlobalSampler(batch_size=128, seed=0),
    ),
    "light": Workload(
        layers=_light,
        cut="front",
        example_shape=(8,),
        num_classes=10,
        examples_per_client=64 * 20,
        sampler=FixedLocalSampler(local_batch_size=64),
    ),
    "peer": Workload(
        layers=_two_convolutions,
        cut="front",
        example_shape=(3, 32, 32),
        num_classes=10,
        examples_per_client=16 * 200,
        sampler=FixedLocalSampler(local_batch_size=16),
    ),
    "many": Workload(
        layers=_light,
        cut="front",
        example_shape=(8,),
        num_classes=10,
        examples_per_client=2 * 20,
        sampler=FixedLocalSampler(local_batch_size=2),
    ),
    "throughput": Workload(
        layers=_wide,
        cut="front",
        example_shape=(1, 80, 80),
        num_classes=2,
        examples_per_client=sum(WIDE_BATCHES),
        sampler=GrowingBatchSampler(WIDE_BATCHES),
    ),
}
