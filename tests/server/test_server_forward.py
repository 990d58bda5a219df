import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flower_psl import PslError
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan

PLAN = StepPlan(server_round=2, step=3, batch_sizes={2: 2, 5: 1}, starts={2: 0, 5: 0})
HUGE = 1.7e308  # twice as much is no float64


def outputs(last: list[float]) -> Tensor:
    """Return outputs of two ordinary examples of client 2, and of one of client 5."""
    return torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], last], dtype=torch.float64)


def check(last: list[float], labels: Tensor) -> None:
    forward = ServerForward(loss_fn=functional.cross_entropy, seed=0)
    loss = functional.cross_entropy(outputs(last), labels)
    forward.check_finite(PLAN, loss, outputs(last), labels)


def test_whose_finite_outputs_have_an_infinite_loss_is_named() -> None:
    with pytest.raises(DiscardedError) as raised:
        check([HUGE, -HUGE, 0.0], torch.tensor([0, 1, 1]))
    assert list(raised.value.failures) == [5]
    assert "or their loss, are not finite" in str(raised.value.failures[5])


def test_who_has_no_label_that_counts_is_not_named_beside() -> None:
    ignored = functional.cross_entropy(outputs([0.0, 0.0, 0.0])[:2], torch.tensor([-100, -100]))
    assert bool(ignored.isnan())
    with pytest.raises(DiscardedError) as raised:
        check([HUGE, -HUGE, 0.0], torch.tensor([-100, -100, 1]))
    assert list(raised.value.failures) == [5]


def test_a_loss_that_a_part_alone_does_not_have_names_nobody() -> None:
    def whole(outputs: Tensor, labels: Tensor) -> Tensor:
        if len(labels) != PLAN.num_examples:
            raise ValueError("not the global batch")
        return outputs.sum() * torch.inf

    forward = ServerForward(loss_fn=whole, seed=0)
    given, labels = outputs([0.1, 0.2, 0.3]), torch.tensor([0, 1, 1])
    with pytest.raises(PslError, match="the loss is inf"):
        forward.check_finite(PLAN, whole(given, labels), given, labels)
