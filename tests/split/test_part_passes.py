import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl import ConfigError, PslError
from flower_psl.split import ModuleIndex, PartPasses
from flower_psl.split.server_pass import forward

LABELS = torch.arange(6) % 3
SIZES = {7: 1, 2: 3, 5: 2}


def server() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)
        ).double()


def parts() -> dict[int, Tensor]:
    draws = torch.Generator().manual_seed(1)
    activations = torch.randn(6, 4, dtype=torch.float64, generator=draws)
    return dict(zip(SIZES, torch.split(activations, [*SIZES.values()]), strict=True))


def passed(segment: nn.Module, order: list[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return loss, cut gradients and the segment's, with forward passes in an order."""
    passes = PartPasses(ModuleIndex(segment))
    for client in order:
        passes.forward(client, parts()[client])
    loss = passes.loss(SIZES, LABELS, functional.cross_entropy, seed=0)
    gradients = [passes.backward(client) for client in SIZES]
    return loss, gradients, [p.grad for p in segment.parameters() if p.grad is not None]


def test_parts_come_to_what_one_pass_over_the_batch_does() -> None:
    segment = server()
    whole = forward(
        ModuleIndex(segment), list(parts().values()), LABELS, functional.cross_entropy, seed=0
    )
    expected = whole.backward()
    loss, gradients, own = passed(server(), list(SIZES))
    torch.testing.assert_close(loss, whole.loss.detach(), rtol=1e-12, atol=0.0)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    for gradient, parameter in zip(own, segment.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-15)


def test_the_order_of_forward_passes_changes_no_bit() -> None:
    (loss, gradients, own), other = passed(server(), [7, 2, 5]), passed(server(), [5, 7, 2])
    assert torch.equal(loss, other[0])
    for ours, theirs in zip([*gradients, *own], [*other[1], *other[2]], strict=True):
        assert torch.equal(ours, theirs)


def test_the_loss_is_that_of_the_parts_that_it_is_asked_for() -> None:
    passes = PartPasses(ModuleIndex(server()))
    for client, activations in parts().items():
        passes.forward(client, activations)
    loss = passes.loss([7, 5], LABELS[[0, 4, 5]], functional.cross_entropy, seed=0)
    alone = list(parts().values())
    segment = ModuleIndex(server())
    some = [alone[0], alone[2]]
    expected = forward(segment, some, LABELS[[0, 4, 5]], functional.cross_entropy, seed=0)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-12, atol=0.0)
    assert passes.outputs([5]).shape == (2, 3)


def test_activations_stay_as_they_came() -> None:
    given = parts()
    passes = PartPasses(ModuleIndex(server()))
    passes.forward(2, given[2])
    assert torch.equal(given[2], parts()[2])
    assert not given[2].requires_grad


@pytest.mark.parametrize(
    ("loss_fn", "error", "text"),
    [
        (nn.CrossEntropyLoss(reduction="none"), ConfigError, "one scalar over the global batch"),
        (lambda outputs, _: outputs.detach().sum(), PslError, "the loss depends on no parameter"),
    ],
)
def test_a_loss_that_is_none_is_refused(
    loss_fn: nn.Module, error: type[Exception], text: str
) -> None:
    passes = PartPasses(ModuleIndex(server()))
    passes.forward(2, parts()[2])
    with pytest.raises(error, match=text):
        passes.loss([2], LABELS[:3], loss_fn, seed=0)


class Deaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * 2


def test_a_segment_that_does_not_use_its_input_is_refused() -> None:
    passes = PartPasses(ModuleIndex(Deaf()))
    passes.forward(2, parts()[2])
    passes.loss([2], LABELS[:3], functional.cross_entropy, seed=0)
    with pytest.raises(PslError, match="the server segment must use its input"):
        passes.backward(2)
