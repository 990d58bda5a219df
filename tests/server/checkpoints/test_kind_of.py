from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from flower_psl.server.checkpoints.kind_of import kind_of

WEIGHT = torch.tensor([1.0, 2.0, 3.0])


class Mixed(nn.Module):
    """A loss of two others."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.MSELoss(), nn.CrossEntropyLoss(label_smoothing=smoothing)])


class Scaled:
    """A loss that is neither a module nor a function."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels) * self.scale


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (cross_entropy, "cross_entropy"),
        (partial(cross_entropy), "cross_entropy"),
        (partial(cross_entropy, reduction="mean"), "cross_entropy(reduction='mean')"),
        (nn.MSELoss(), "MSELoss(reduction='mean')"),
        (Scaled(2.0), "Scaled(scale=2.0)"),
        (object(), "object"),
        (Scaled, "Scaled"),
    ],
)
def test_a_loss_is_its_kind_and_settings(loss: Any, said: str) -> None:
    assert kind_of(loss) == said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHT)),
        (nn.CrossEntropyLoss(weight=WEIGHT * 2), nn.CrossEntropyLoss(weight=WEIGHT)),
        (cross_entropy, partial(cross_entropy, label_smoothing=0.1)),
        (
            partial(cross_entropy, label_smoothing=0.2),
            partial(cross_entropy, label_smoothing=0.1),
        ),
        (partial(cross_entropy, weight=WEIGHT * 2), partial(cross_entropy, weight=WEIGHT)),
        (partial(Scaled(1.0)), partial(Scaled(2.0))),
        (Mixed(), Mixed(0.1)),
    ],
)
def test_losses_that_differ_are_told_apart(one: Any, other: Any) -> None:
    assert kind_of(one) != kind_of(other)


def test_the_same_loss_is_the_same_whenever_it_is_made() -> None:
    assert kind_of(nn.CrossEntropyLoss().train()) == kind_of(nn.CrossEntropyLoss().eval())
    both = [kind_of(nn.CrossEntropyLoss(weight=WEIGHT.clone())) for _ in range(2)]
    assert both[0] == both[1]
    assert "weight=float32 (3,) " in both[0]
    assert kind_of(partial(cross_entropy, weight=WEIGHT, reduction="sum")) == kind_of(
        partial(cross_entropy, reduction="sum", weight=WEIGHT.clone())
    )
