import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flower_psl import CutError
from flower_psl.split import ModuleIndex, load_tensors, trained_tensors
from flower_psl.split.client_pass import ClientPass, forward


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        output: Tensor = torch.tanh(self.left(x)) * self.right(y)
        return output


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Counter(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class Average(nn.Module):
    """Assigns a new tensor to its buffer in every forward pass."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


def conv_segment() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
    )


def run(segment: nn.Module, x: Tensor, *, training: bool = True, seed: int = 0) -> ClientPass:
    return forward(
        ModuleIndex(segment), ModuleIndex(segment).tensors, x, training=training, seed=seed
    )


def test_gradients_are_those_of_autograd_in_one_piece() -> None:
    segment = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, upstream = torch.rand(6, 3).double(), torch.rand(6, 2).double()
    computed = run(segment, x)
    gradients = computed.backward(upstream)

    output = segment(x)
    output.backward(upstream)
    assert torch.equal(computed.activations, output)
    assert list(gradients) == [name for name, _ in segment.named_parameters()]
    for name, parameter in segment.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(gradients[name], parameter.grad)


@pytest.mark.parametrize(
    "pack",
    [lambda x, y: (x, y), lambda x, y: {"y": y, "x": x}],
)
def test_several_inputs_are_arguments(
    pack: Callable[[Tensor, Tensor], tuple[Tensor, ...] | dict[str, Tensor]],
) -> None:
    segment, x, y = TwoInputs(), torch.rand(5, 3), torch.rand(5, 2)
    inputs = pack(x, y)
    computed = forward(
        ModuleIndex(segment), ModuleIndex(segment).tensors, inputs, training=True, seed=0
    )
    assert torch.equal(computed.activations, segment(x, y))


def test_activations_are_detached_and_contiguous() -> None:
    segment = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)))
    segment.append(nn.Flatten())
    computed = run(segment, torch.rand(5, 3))
    assert not computed.activations.requires_grad
    assert computed.activations.is_contiguous()


def test_a_transposed_output_is_made_contiguous() -> None:
    class Transpose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    computed = run(Transpose(), torch.rand(2, 3, 4))
    assert computed.activations.shape == (2, 4, 3)
    assert computed.activations.is_contiguous()


def test_the_segment_and_the_weights_stay_as_they_are() -> None:
    segment, x = conv_segment(), torch.rand(4, 3, 5, 5)
    weights = {name: tensor.clone() for name, tensor in ModuleIndex(segment).tensors.items()}
    before = copy.deepcopy(segment.state_dict())
    given = {name: tensor.clone() for name, tensor in weights.items()}
    forward(ModuleIndex(segment), weights, x, training=True, seed=0).backward(
        torch.rand(4, 4, 5, 5)
    )
    forward(ModuleIndex(segment), weights, x, training=False, seed=0)
    for name, tensor in segment.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in weights.items():
        assert torch.equal(tensor, given[name]), name
        assert not tensor.requires_grad
    assert all(parameter.grad is None for parameter in segment.parameters())


def test_the_weights_count_and_not_those_of_the_segment() -> None:
    segment, other = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.rand(4, 3)
    computed = forward(ModuleIndex(segment), ModuleIndex(other).tensors, x, training=True, seed=0)
    assert torch.equal(computed.activations, other(x))


def test_a_meta_segment_is_enough() -> None:
    segment = conv_segment()
    with torch.device("meta"):
        meta = conv_segment()
    x, upstream = torch.rand(4, 3, 5, 5), torch.rand(4, 4, 5, 5)
    weights = ModuleIndex(segment).tensors
    ours = forward(ModuleIndex(meta), weights, x, training=True, seed=3)
    theirs = forward(ModuleIndex(segment), weights, x, training=True, seed=3)
    assert torch.equal(ours.activations, theirs.activations)
    expected = theirs.backward(upstream)
    for name, gradient in ours.backward(upstream).items():
        assert torch.equal(gradient, expected[name]), name


def test_a_seed_repeats_dropout_and_another_does_not() -> None:
    segment, x = conv_segment(), torch.rand(4, 3, 5, 5)
    first, again, other = run(segment, x, seed=1), run(segment, x, seed=1), run(segment, x, seed=2)
    assert torch.equal(first.activations, again.activations)
    assert not torch.equal(first.activations, other.activations)


def test_the_process_generator_is_left_alone() -> None:
    segment, x = conv_segment(), torch.rand(4, 3, 5, 5)
    state = torch.get_rng_state()
    run(segment, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_uses_running_statistics_and_keeps_no_graph() -> None:
    segment, x = conv_segment(), torch.rand(4, 3, 5, 5)
    segment.get_buffer("1.running_mean").fill_(0.5)
    computed = run(segment, x, training=False)
    assert computed.moments == {}
    assert torch.equal(computed.activations, segment.eval()(x))
    assert computed.backward(torch.rand(4, 4, 5, 5)) == {}


def test_training_after_evaluation_trains() -> None:
    segment, x = conv_segment(), torch.rand(4, 3, 5, 5)
    first = run(segment, x)
    run(segment, x, training=False)
    assert torch.equal(run(segment, x).activations, first.activations)


def test_a_frozen_parameter_gets_no_gradient() -> None:
    segment = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    segment[0].requires_grad_(False)
    gradients = run(segment, torch.rand(5, 3)).backward(torch.rand(5, 2))
    assert set(gradients) == {"1.weight", "1.bias"}


def test_an_unused_parameter_is_left_out() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.used(x)
            return output

    gradients = run(Partly(), torch.rand(5, 3)).backward(torch.rand(5, 2))
    assert set(gradients) == {"used.weight", "used.bias"}


def test_tied_weights_inside_the_segment_get_one_gradient() -> None:
    segment = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    segment[1].weight = segment[0].weight
    x, upstream = torch.rand(5, 3), torch.rand(5, 3)
    gradients = run(segment, x).backward(upstream)
    segment(x).backward(upstream)
    expected = segment.get_parameter("0.weight").grad
    assert expected is not None
    assert torch.equal(gradients["0.weight"], expected)
    assert set(gradients) == {"0.weight", "0.bias", "1.bias"}


def test_a_buffer_outside_the_state_dict_is_among_the_tensors() -> None:
    segment = nn.Module()
    segment.register_buffer("scale", torch.tensor(2.0), persistent=False)
    segment.register_parameter("shift", nn.Parameter(torch.tensor(1.0)))
    assert list(ModuleIndex(segment).tensors) == ["shift", "scale"]
    assert not ModuleIndex(segment).tensors["shift"].requires_grad


def test_more_than_one_output_is_refused() -> None:
    with pytest.raises(CutError, match=r"returned a tuple; the activations are one tensor\. Cut"):
        run(Pair(), torch.rand(3))


def test_a_buffer_that_changes_is_refused() -> None:
    with pytest.raises(
        CutError, match=r"changes its buffers \['0.count'\]; only BatchNorm's.*Put"
    ):
        run(nn.Sequential(Counter(), nn.Linear(3, 3)), torch.rand(2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_a_buffer_that_is_replaced_is_refused(training: bool) -> None:
    segment = nn.Sequential(Average(), nn.Linear(3, 3))
    with pytest.raises(CutError, match=r"changes its buffers \['0.mean'\]; only BatchNorm's.*Put"):
        run(segment, torch.rand(2, 3), training=training)
    assert segment.get_buffer("0.mean") == 0


def test_running_statistics_of_instance_norm_are_refused() -> None:
    segment = nn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(CutError, match="running_mean"):
        run(segment, torch.rand(2, 3, 4, 4))


def test_a_segment_that_is_a_batch_norm_layer_passes() -> None:
    assert set(run(nn.BatchNorm1d(3), torch.rand(4, 3)).moments) == {".mean", ".var", ".count"}


def test_tensors_are_loaded_whatever_their_memory_looks_like() -> None:
    segment = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    segment = segment.to(memory_format=torch.channels_last)
    values = {
        name: torch.rand(tensor.shape).to(tensor.dtype)
        for name, tensor in ModuleIndex(segment).tensors.items()
        if name != "0.bias"
    }
    bias = segment.state_dict()["0.bias"].clone()
    load_tensors(segment, values)
    assert not segment.state_dict()["0.weight"].is_contiguous()
    loaded = ModuleIndex(segment).tensors
    assert all(torch.equal(loaded[name], tensor) for name, tensor in values.items())
    assert torch.equal(loaded["0.bias"], bias)


def test_what_training_changes_is_what_is_trained_and_running_statistics() -> None:
    segment = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
    segment[0].requires_grad_(False)
    segment.register_buffer("constant", torch.ones(2))
    assert list(trained_tensors(ModuleIndex(segment))) == [
        *("1.weight", "1.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
        *("2.running_mean", "2.running_var", "2.num_batches_tracked"),
    ]
