from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl import ConfigError, PslError
from flower_psl.split import ModuleIndex, check_loss_fn
from flower_psl.split.server_pass import LossFn, ServerPass, forward


def server() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


def run(
    segment: nn.Module,
    activations: Tensor | None = None,
    loss_fn: LossFn = functional.cross_entropy,
) -> ServerPass:
    """Run a segment on the activations of two clients."""
    if activations is None:
        activations = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    parts = torch.split(activations, [4, 2])
    return forward(ModuleIndex(segment), parts, torch.arange(6) % 3, loss_fn, seed=5)


def test_loss_and_gradients_are_those_of_autograd_in_one_piece() -> None:
    segment, reference = server(), server()
    activations, labels = torch.rand(6, 4), torch.arange(6) % 3
    parts = torch.split(activations, [1, 3, 2])
    passed = forward(ModuleIndex(segment), parts, labels, functional.cross_entropy, seed=5)
    gradients = passed.backward()

    whole = activations.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        outputs = reference(whole)
    loss = functional.cross_entropy(outputs, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(passed.outputs, outputs)
    assert torch.equal(passed.loss, loss)
    assert whole.grad is not None
    assert [len(gradient) for gradient in gradients] == [1, 3, 2]
    assert torch.equal(torch.cat(gradients), whole.grad)
    for ours, theirs in zip(segment.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    for name, buffer in reference.named_buffers():
        assert torch.equal(segment.get_buffer(name), buffer)


def test_gradients_add_up_until_they_are_dropped() -> None:
    segment = nn.Linear(4, 3)
    run(segment).backward()
    assert segment.weight.grad is not None
    once = segment.weight.grad.clone()
    run(segment).backward()
    assert torch.equal(segment.weight.grad, 2 * once)


def test_the_activations_given_are_not_changed() -> None:
    activations = torch.randn(6, 4)
    before = activations.clone()
    segment = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    gradients = run(segment, activations).backward()
    assert torch.equal(activations, before)
    assert not activations.requires_grad
    assert torch.equal(gradients[0] == 0, activations[:4] <= 0)


def test_a_first_layer_may_work_in_place_on_one_clients_activations() -> None:
    activations, labels = torch.randn(6, 4), torch.arange(6) % 3
    segment = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    passed = forward(ModuleIndex(segment), [activations], labels, functional.cross_entropy, seed=5)
    [gradient] = passed.backward()
    whole = activations.clone().requires_grad_()
    functional.cross_entropy(segment[1](whole.relu()), labels).backward()  # type: ignore[no-untyped-call]
    assert whole.grad is not None
    assert torch.equal(gradient, whole.grad)


def test_a_step_after_an_evaluation_trains() -> None:
    segment = server().eval()
    run(segment)
    assert all(module.training for module in segment.modules())
    assert segment[1].num_batches_tracked == 1


def test_a_step_within_no_grad_still_has_its_graph() -> None:
    with torch.no_grad():
        passed = run(server())
    assert [gradient.shape for gradient in passed.backward()] == [(4, 4), (2, 4)]


def test_a_seed_repeats_dropout_and_leaves_the_process_alone() -> None:
    state = torch.get_rng_state()
    segments = nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)])
    losses = [
        run(segment, loss_fn=lambda outputs, labels: outputs.sum()).loss for segment in segments
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"returned \(6,\); the loss is one scalar .*reduction"):
        run(server(), loss_fn=nn.CrossEntropyLoss(reduction="none"))


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="returned float; the loss is one scalar"):
        run(server(), loss_fn=cast(LossFn, lambda outputs, labels: 1.0))


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(PslError, match="depends on no parameter and not on the activations"):
        run(server(), loss_fn=lambda outputs, labels: outputs.detach().sum()).backward()


def test_a_server_that_ignores_its_input_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 3)

    with pytest.raises(PslError, match="does not depend on the activations; the server segment"):
        run(Constant()).backward()


@pytest.mark.parametrize(
    "loss_fn", [functional.cross_entropy, nn.CrossEntropyLoss(weight=torch.ones(3)), nn.MSELoss()]
)
def test_losses_without_parameters_pass(loss_fn: LossFn) -> None:
    assert check_loss_fn(loss_fn) is None  # type: ignore[func-returns-value]


def test_a_loss_with_parameters_is_refused() -> None:
    class CenterLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centers = nn.Parameter(torch.zeros(3))

        def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return (outputs - self.centers[labels]).square().mean()

    with pytest.raises(ConfigError, match=r"of its own, \['centers'\]; .*not be trained. Move"):
        check_loss_fn(CenterLoss())


def test_a_loss_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss_fn is 'mse'; it must be a function"):
        check_loss_fn(cast(LossFn, "mse"))
