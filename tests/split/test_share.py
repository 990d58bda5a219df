import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flower_psl.errors import CutError
from flower_psl.split.cut import cut


class Tied(nn.Module):
    """The head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.embed(x)))
        return y


class Reused(nn.Module):
    """One layer is called on both sides, or its weight is read on the other."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.stem = nn.Linear(2, 2)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(self.layer(x))
        z: Tensor = F.linear(y, self.layer.weight) if self.functional else self.layer(y)
        return z


@pytest.mark.parametrize("functional", [False, True])
def test_a_module_on_both_sides_is_refused(functional: bool) -> None:
    with pytest.raises(CutError) as caught:
        cut(Reused(functional), "stem")
    assert "['layer'] are used on both sides of the cut" in str(caught.value)
    assert "Cut where all its uses are on the same side" in str(caught.value)


def test_a_module_used_twice_on_one_side_is_not() -> None:
    model = nn.Sequential(Reused(True), nn.Linear(2, 1))
    x = torch.randn(3, 2)
    assert torch.equal(cut(model, "0")(x), model(x))


def test_tied_weights_across_the_cut_are_refused_by_name() -> None:
    with pytest.raises(CutError) as caught:
        cut(Tied(), "embed")
    assert "embed.weight (client) = head.weight (server)" in str(caught.value)
    assert "Untie them" in str(caught.value)


def test_weights_tied_on_one_side_keep_both_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[1].weight
    split = cut(model, "0")
    assert list(split.state_dict()) == list(model.state_dict())
    assert [n for n, _ in split.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert split.server.get_parameter("1.weight") is split.server.get_parameter("2.weight")


def test_a_module_with_two_names_keeps_both() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 2)
            self.again = self.stem
            self.head = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.again(x))
            return y

    split = cut(Alias(), "stem")
    assert sorted(split.client.state_dict()) == [
        "again.bias",
        "again.weight",
        "stem.bias",
        "stem.weight",
    ]


class Inner(nn.Module):
    """Its layers are called by the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 1)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.stem = nn.ReLU()
        self.constant = torch.tensor([2.0])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.second(self.stem(self.inner.first(x))) * self.constant
        return y


def test_layers_of_a_module_that_is_not_called_itself_may_be_on_different_sides() -> None:
    model = Outer()
    split = cut(model, "stem")
    x = torch.randn(3, 2)
    assert torch.equal(split(x), model(x))
    assert set(split.client.state_dict()) == {"inner.first.weight", "inner.first.bias"}
    # A tensor that is no buffer stays none.
    assert split.server.get_submodule("").constant is model.constant
    assert set(split.server.state_dict()) == {"inner.second.weight", "inner.second.bias"}
