import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from flower_psl import ConfigError
from flower_psl.split import ModuleIndex, check_example_wise

IMAGES = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    """A layer whose forward is a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SequenceFirst(nn.Module):
    """Works on its examples along the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.transpose(0, 1))
        return y.transpose(0, 1)


class Attention(nn.Module):
    """Attends over dimension 1, or by mistake over the batch."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x[:, 0], x[:, 0], x[:, 0])[0]
        return y


NAMES = {"name": "client segment", "remedy": "Leave out this"}


def check(segment: nn.Module, inputs: Tensor = IMAGES) -> None:
    check_example_wise(segment, ModuleIndex(segment).tensors, inputs, **NAMES)


def outcome(segment: nn.Module, inputs: Tensor = IMAGES) -> str:
    try:
        check(segment, inputs)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.InstanceNorm2d(4), nn.MaxPool2d(2), nn.LayerNorm(3)),
        nn.Dropout(p=0.0),
        SequenceFirst(),
        Attention(batch_first=True),
    ],
)
def test_layers_that_treat_every_example_alone_are_accepted(layer: nn.Module) -> None:
    assert outcome(nn.Sequential(nn.Identity(), layer)) == "accepted"


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm2d(4), "'1' (BatchNorm2d)"),
        (nn.BatchNorm2d(4, track_running_stats=False), "'1' (BatchNorm2d)"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "'1.1' (BatchNorm2d)"),
        (Applied(lambda x: x - 1e-6 * x.mean(0)), "'1' (Applied)"),
        (Attention(batch_first=False), "'1' (Attention)"),
    ],
)
def test_a_layer_that_mixes_examples_is_named(layer: nn.Module, named: str) -> None:
    assert outcome(nn.Sequential(nn.Identity(), layer)) == (
        f"layer {named} of the client segment mixes the examples of a batch in training; parts of "
        "a batch that are computed together or one by one, as it suits, need layers that treat "
        "every example alone and alike. Leave out this."
    )


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Dropout(0.1), "'1' (Dropout)"),
        (nn.RReLU(), "'1' (RReLU)"),
        (StochasticDepth(0.5, "row"), "'1' (StochasticDepth)"),
        (Applied(functional.dropout), "'1' (Applied)"),
    ],
)
def test_a_layer_that_draws_is_named(layer: nn.Module, named: str) -> None:
    assert outcome(nn.Sequential(nn.Identity(), layer)).startswith(
        f"layer {named} of the client segment draws random numbers in training; "
    )


def test_the_segment_itself_can_mix() -> None:
    assert outcome(Applied(lambda x: x / x.sum())).startswith("layer '' (Applied)")


def test_a_segment_in_evaluation_mode_is_looked_at_as_in_training() -> None:
    with pytest.raises(ConfigError, match=re.escape("layer '0' (BatchNorm2d)")):
        check(nn.Sequential(nn.BatchNorm2d(4)).eval())


def test_a_segment_on_the_meta_device_is_looked_at_with_the_weights() -> None:
    weights = ModuleIndex(nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))).tensors
    meta = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).to("meta")
    with pytest.raises(ConfigError, match=re.escape("layer '1' (BatchNorm2d)")):
        check_example_wise(meta, weights, IMAGES, **NAMES)


def test_nothing_is_left_behind() -> None:
    segment = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).eval()
    weights = ModuleIndex(segment).tensors
    before = {name: tensor.clone() for name, tensor in weights.items()}
    inputs, state = IMAGES.clone(), torch.get_rng_state()
    with pytest.raises(ConfigError):
        check_example_wise(segment, weights, inputs, **NAMES)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert torch.equal(inputs, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training or module._forward_hooks for module in segment.modules())


def test_nan_is_not_taken_for_mixing() -> None:
    inputs = IMAGES.clone()
    inputs[0, 0, 0, 0] = torch.nan
    assert outcome(nn.Conv2d(4, 3, 1), inputs) == "accepted"


def test_token_inputs_are_looked_at() -> None:
    tokens = torch.randint(9, (4, 7), generator=torch.Generator().manual_seed(0))
    assert outcome(nn.Embedding(9, 3), tokens) == "accepted"
    mixing = nn.Sequential(nn.Embedding(9, 3), nn.BatchNorm1d(7))
    assert outcome(mixing, tokens).startswith("layer '1' (BatchNorm1d)")
