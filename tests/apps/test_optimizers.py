import pytest
import torch
from torch import nn

from apps.image_classification.config import AppConfig
from apps.image_classification.optimizers import OPTIMIZERS, SCHEDULES


def test_sgd_has_rate_momentum_and_decay() -> None:
    config = AppConfig(learning_rate=0.3, momentum=0.8, weight_decay=0.01)
    optimizer = OPTIMIZERS["sgd"](config, nn.Linear(2, 1).parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 0.01)


def test_adamw_has_rate_and_decay() -> None:
    config = AppConfig(learning_rate=0.3, weight_decay=0.01)
    optimizer = OPTIMIZERS["adamw"](config, nn.Linear(2, 1).parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)


def test_cosine_goes_from_the_rate_to_zero_in_the_total_steps() -> None:
    build = SCHEDULES["cosine"]
    assert build is not None
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.4)
    schedule = build(optimizer, 4)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[1] == pytest.approx(0.2)
    assert rates[3] == pytest.approx(0.0)


def test_constant_has_no_schedule() -> None:
    assert SCHEDULES["constant"] is None
