from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl.server.loss_normalizer import loss_normalizer

WEIGHT = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64)
SIZES = [3, 1, 6]


def classes(*shape: int) -> Tensor:
    return torch.randint(3, (10, *shape), generator=torch.Generator().manual_seed(1))


def probabilities() -> Tensor:
    return torch.rand(10, 3, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize(
    ("loss_fn", "labels", "shape"),
    [
        (nn.CrossEntropyLoss(), classes(), (3,)),
        (nn.CrossEntropyLoss(reduction="sum"), classes(), (3,)),
        (partial(functional.mse_loss, reduction="sum"), torch.rand(10, 2).double(), (2,)),
        (nn.CrossEntropyLoss(ignore_index=1), classes(), (3,)),
        (nn.CrossEntropyLoss(weight=WEIGHT), classes(), (3,)),
        (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2), classes(), (3,)),
        (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.3), classes(), (3,)),
        (nn.CrossEntropyLoss(weight=WEIGHT), probabilities(), (3,)),
        (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0), classes(4), (3, 4)),
        (nn.NLLLoss(weight=WEIGHT), classes(), (3,)),
        (functional.cross_entropy, classes(), (3,)),
        (nn.MSELoss(), torch.rand(10, 2, dtype=torch.float64), (2,)),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), classes(3).double(), (3,)),
        (nn.KLDivLoss(reduction="batchmean"), probabilities(), (3,)),
    ],
)
def test_the_gradient_of_a_part_is_that_of_the_whole_times_the_ratio(
    loss_fn: Callable[[Any, Tensor], Tensor], labels: Tensor, shape: tuple[int, ...]
) -> None:
    outputs = torch.randn(10, *shape, dtype=torch.float64, requires_grad=True)
    [whole] = torch.autograd.grad(loss_fn(outputs, labels), outputs)
    all_of_it = loss_normalizer(loss_fn, labels)
    parts = zip(
        torch.split(outputs, SIZES),
        torch.split(whole, SIZES),
        torch.split(labels, SIZES),
        strict=True,
    )
    for output, gradient, part in parts:
        own_output = output.detach().requires_grad_()
        mass = loss_normalizer(loss_fn, part)
        if mass:
            [own] = torch.autograd.grad(loss_fn(own_output, part), own_output)
            torch.testing.assert_close(own, gradient * (all_of_it / mass))
        else:
            assert not gradient.any()


def test_where_every_label_is_ignored_nothing_weighs() -> None:
    assert loss_normalizer(nn.CrossEntropyLoss(ignore_index=2), torch.tensor([2, 2])) == 0.0
