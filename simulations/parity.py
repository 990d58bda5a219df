"""Split training with GPSL beside a plain loop that is fed GPSL's own global batches."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flower_psl import GlobalSampler, ParallelSplitLearning, SplitClient, cut, run_in_process
from simulations.dirichlet import Parts
from simulations.models import MODELS
from simulations.training import Training, cosine, take_step


class _Noted:
    """A client's examples, and a list of those that were asked for, in order."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked.append(index)
        return self._images[index], self._labels[index]


def weight_difference(training: Training, parts: Parts, num_steps: int) -> float:
    """Train twice in float64 and return the largest difference of any weight.

    Once over clients, noting which examples make up each global batch, and once in a plain
    loop on these batches.

    Parameters
    ----------
    training : Training
        Its first `num_steps` steps are taken.
    parts : list of NDArray[int64]
        The places of each client's examples in the pooled data.
    num_steps : int
        At most one round's.
    """
    images, labels = training.data.train_images.double(), training.data.train_labels
    model = training.initial_model().double()
    split = cut(model, at=MODELS[training.model][1])
    data = {key: _Noted(images[part], labels[part]) for key, part in enumerate(parts)}
    sampler = GlobalSampler(training.batch_size, seed=training.seed)
    strategy = ParallelSplitLearning(
        model=split,
        sampler=sampler,
        loss_fn=functional.cross_entropy,
        optimizer_fn=training.optimizer,
        lr_scheduler_fn=cosine,
        steps_per_round=num_steps,
        seed=training.seed,
    )
    result = run_in_process(
        strategy,
        {key: SplitClient(split.client, noted) for key, noted in data.items()},
        ArrayRecord(model.state_dict()),
        num_rounds=1,
    )
    schedule = sampler.schedule({key: len(part) for key, part in enumerate(parts)}, 1)
    steps = [schedule[step] for step in range(min(num_steps, len(schedule)))]
    asked = {key: part[data[key].asked] for key, part in enumerate(parts)}
    optimizer = training.optimizer(model.parameters())
    scheduler = cosine(optimizer, len(steps))
    for rows in _global_batches(steps, asked):
        take_step(model, optimizer, images[rows], labels[rows])
        scheduler.step()
    ours = result.arrays.to_torch_state_dict()
    return max(
        float((weights - ours[name]).abs().max()) for name, weights in model.state_dict().items()
    )


def _global_batches(
    steps: Sequence[Mapping[int, int]], asked: Mapping[int, NDArray[np.int64]]
) -> Iterator[list[int]]:
    """Yield the places of each step's examples, given those of each client in their order."""
    waiting = {key: iter(places.tolist()) for key, places in asked.items()}
    for step in steps:
        yield [place for key, size in step.items() for place in islice(waiting[key], size)]
