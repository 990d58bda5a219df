import copy

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from flower_psl.errors import CutError
from flower_psl.split.cut import cut


def refused(model: nn.Module, at: str) -> str:
    with pytest.raises(CutError) as caught:
        cut(model, at)
    return str(caught.value)


def test_a_residual_connection_across_the_cut_is_refused_by_name() -> None:
    message = refused(zoo.resnet18(num_classes=10), "layer1.0.conv1")
    assert "the cut at 'layer1.0.conv1' is crossed by 2 values" in message
    assert "the output of 'maxpool', the output of 'layer1.0.conv1'" in message
    assert "only the output of the cut layer may cross it" in message
    assert "Cut at a block's boundary" in message


def test_an_input_that_the_server_needs_is_refused_by_name() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 2)
            self.head = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.stem(x)) * x.shape[0] + x.mean()
            return y

    message = refused(Skip(), "stem")
    assert "crossed by 2 values: the input 'x', the output of 'stem';" in message


def test_computed_values_are_named_by_what_they_are_computed_from() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.stem = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x) * self.scale)
            z: Tensor = self.stem(y) + y.exp()
            return z

    message = refused(Branch(), "stem")
    assert "relu(mul(the output of 'first', scale)), the output of 'stem';" in message


class Calls(nn.Module):
    """Calls its first layer a number of times."""

    def __init__(self, times: int, only_in_training: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.times, self.only_in_training = times, only_in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.only_in_training:
            for _ in range(self.times):
                x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("model", "at", "times"),
    [
        (Calls(0), "first", 0),
        (Calls(2), "first", 2),
        (Calls(1), "layers", 0),
        (Calls(1, only_in_training=True), "first", 0),
    ],
)
def test_the_cut_layer_is_called_exactly_once(model: nn.Module, at: str, times: int) -> None:
    message = refused(model, at)
    assert f"forward calls {at!r} (" in message
    assert f") {times} times; the cut layer is called exactly once" in message
    assert "in training and in evaluation mode" in message
    assert ("a ModuleList only holds layers" in message) == (times == 0)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.layer(x)
        y: Tensor = self.head(out)
        return y


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4, batch_first=True), Pair()])
def test_layers_that_return_several_values_are_refused(layer: nn.Module) -> None:
    message = refused(Recurrent(layer), "layer")
    assert f"'layer' ({type(layer).__name__}) returns several values" in message
    assert "exactly one tensor may cross the cut" in message
    assert "Wrap the layer in a module that returns one tensor" in message


def test_a_cut_that_leaves_nothing_for_the_server_is_refused() -> None:
    message = refused(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "1")
    assert "behind '1' nothing is left to compute" in message and "Cut earlier" in message


class Effects(nn.Module):
    """Statements whose values nobody reads: assertions, in-place changes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.relu = nn.ReLU(inplace=True)
        self.middle = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 2, "two features")
        y = self.stem(x)
        y.add_(1)
        z = self.middle(y)
        z.mul_(2)
        self.relu(z)
        h: Tensor = self.head(z)
        return h


def test_effects_stay_with_the_values_that_they_are_about() -> None:
    model = Effects()
    split = cut(copy.deepcopy(model), "middle")
    x = torch.randn(4, 2)
    assert torch.equal(split(x), model(x))
    expected = model.middle(model.stem(x) + 1)
    assert torch.equal(split.client(x), expected)  # what follows the cut is the server's
    with pytest.raises(AssertionError, match="two features"):
        split.client(torch.randn(4, 3))


def test_an_input_that_is_only_looked_at_stays_with_the_client() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 2)
            self.head = nn.Linear(2, 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            torch._assert(mask.dim() == 1, "one dimension")
            y: Tensor = self.head(self.stem(x))
            return y

    model = Checked()
    split = cut(model, "stem")
    x = torch.randn(4, 2)
    assert torch.equal(split(x, torch.ones(4)), model(x, torch.ones(4)))
    with pytest.raises(AssertionError, match="one dimension"):
        split.client(x, torch.ones(4, 1))
