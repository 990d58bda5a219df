"""Training and evaluation of the whole model on one device, as federated methods do it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from .optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from .config import AppConfig


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whose turn it is: all that the order of the examples and random layers depend on.

    Attributes
    ----------
    seed : int
        That of the run, or of its phase.
    server_round : int
    client_key : int
    """

    seed: int
    server_round: int
    client_key: int


def train_whole(
    model: nn.Module,
    examples: TensorDataset,
    config: "AppConfig",
    turn: Turn,
    *,
    batch_size: int,
    proximal_mu: float = 0.0,
) -> float:
    """Train a model on a device's examples, with a new optimizer, and return the mean loss.

    Parameters
    ----------
    model : nn.Module
        On the device that `config` names. It is changed, and left in training mode.
    examples : TensorDataset
        Images of shape (N, C, H, W) and labels of shape (N,), int64; they may be none.
    config : AppConfig
        With the optimizer, ``local-epochs``, and ``steps-per-round`` as a bound on the steps.
    turn : Turn
    batch_size : int
        Examples of one step; the last one of an epoch has what is left.
    proximal_mu : float
        FedProx: mu / 2 times the squared distance to the weights at the beginning is added to
        the loss (arXiv:1812.06127, equation 2).

    Returns
    -------
    float
        Mean over the examples seen, without FedProx's term; 0 for none.
    """
    model.train()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = OPTIMIZERS[config.optimizer](config, model.parameters())
    loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    place = np.random.SeedSequence([turn.seed, turn.server_round, turn.client_key])
    random = np.random.default_rng(place)
    total, seen = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(int(place.generate_state(1)[0]))
        for images, labels in _batches(examples, config, random, batch_size):
            loss = loss_fn(model(images), labels)
            total, seen = total + loss.item() * len(labels), seen + len(labels)
            if proximal_mu:
                loss = loss + proximal_mu / 2 * _squared_distance(model, start)
            optimizer.zero_grad()
            loss.backward()
            if config.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
    return total / seen if seen else 0.0


def local_batch_size(config: "AppConfig", num_clients: int) -> int:
    """Return a device's batch size: what `FixedLocalSampler` gives each of so many clients."""
    shared = (2 * config.batch_size + num_clients) // (2 * num_clients)
    return config.local_batch_size or max(1, shared)


def _batches(
    examples: TensorDataset, config: "AppConfig", random: np.random.Generator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = examples.tensors
    steps = 0
    for _ in range(config.local_epochs):
        order = torch.from_numpy(random.permutation(len(labels)))
        for some in torch.split(order, batch_size) if len(order) else ():
            if config.steps_per_round and steps == config.steps_per_round:
                return
            steps += 1
            yield images[some].to(config.device), labels[some].to(config.device)


def _squared_distance(model: nn.Module, start: list[Tensor]) -> Tensor:
    distances = [
        (now - before).square().sum()
        for now, before in zip(model.parameters(), start, strict=True)
    ]
    return torch.stack(distances).sum()
