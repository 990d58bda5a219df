"""The optimizers and learning-rate schedules a run can choose from."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

if TYPE_CHECKING:
    from .config import AppConfig

Parameters = Iterable[nn.Parameter]
ScheduleFn = Callable[[Optimizer, int], LRScheduler]


def _sgd(config: "AppConfig", params: Parameters) -> Optimizer:
    return SGD(
        params,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def _adamw(config: "AppConfig", params: Parameters) -> Optimizer:
    return AdamW(params, lr=config.learning_rate, weight_decay=config.weight_decay)


def _cosine(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=total_steps)


OPTIMIZERS: dict[str, Callable[["AppConfig", Parameters], Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}

SCHEDULES: dict[str, ScheduleFn | None] = {
    "constant": None,
    "cosine": _cosine,
}
"""From optimizer and total steps to the schedule stepped after every step; None: no change."""
