from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flower_psl.errors import ConfigError, CutError
from flower_psl.split.cut import cut
from flower_psl.split.split_model import SplitModel


def hand_written() -> SplitModel:
    client = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2)))
    server = nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(8, 3)))
    return SplitModel(client, server)


def test_hand_written_segments_make_a_whole_model() -> None:
    split = hand_written()
    x = torch.randn(2, 1, 4, 4)
    assert split.at == ""
    assert torch.equal(split.eval()(x), split.server(split.client(x)))
    assert list(split.state_dict()) == [
        *split.client.state_dict(),
        *split.server.state_dict(),
    ]
    assert len(list(split.parameters())) == 6
    assert repr(split) == "SplitModel(at='', client=24, server=27 parameters)"


def test_modes_reach_both_segments() -> None:
    split = hand_written()
    assert split.eval() is split
    assert not split.client.training and not split.server.training
    assert split.train() is split
    assert split.client.training and split.server.training


def test_shared_keys_are_refused() -> None:
    with pytest.raises(CutError) as caught:
        SplitModel(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 1)))
    assert "both segments have the state_dict keys ['0.weight', '0.bias']" in str(caught.value)
    assert "each key of the whole model belongs to one segment" in str(caught.value)
    assert "nn.Sequential(OrderedDict(stem=...))" in str(caught.value)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_shared_tensors_are_refused(kind: str) -> None:
    client = nn.Sequential(OrderedDict(a=nn.BatchNorm1d(2)))
    server = nn.Sequential(OrderedDict(b=nn.BatchNorm1d(2)))
    name = "weight" if kind == "parameter" else "running_mean"
    setattr(server[0], name, getattr(client[0], name))
    with pytest.raises(CutError) as caught:
        SplitModel(client, server)
    assert f"a.{name} (client) = b.{name} (server)" in str(caught.value)
    assert "cannot be on two machines" in str(caught.value)
    assert "Untie them" in str(caught.value)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(["conv.weight", "norm.weight", "head.bias", "head.weight"]))
def test_the_given_order_is_kept_and_the_rest_comes_last(order: list[str]) -> None:
    segments = hand_written()
    split = SplitModel(segments.client, segments.server, order=order)
    assert list(split.state_dict())[:4] == order
    names = [name for name, _ in split.named_parameters()]
    assert names == [*order, "conv.bias", "norm.bias"]


def test_one_optimizer_is_that_of_the_whole_model() -> None:
    class Backwards(nn.Module):
        """Registers its layers in another order than it calls them."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 1)
            self.stem = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.stem(x))
            return y

    model = Backwards()
    split = cut(model, "stem")
    ours = [id(parameter) for parameter in split.parameters()]
    assert ours == [id(parameter) for parameter in model.parameters()]


def test_a_state_is_loaded_into_both_segments() -> None:
    split, other = hand_written(), hand_written()
    split.load_state_dict(dict(reversed(other.state_dict().items())))
    for name, tensor in other.state_dict().items():
        assert torch.equal(split.state_dict()[name], tensor)


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    split = hand_written()
    before = {name: tensor.clone() for name, tensor in split.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["head.bias"]
    state["tail.bias"] = torch.zeros(3)
    state["conv.bias"] = torch.zeros(5)
    with pytest.raises(ConfigError) as caught:
        split.load_state_dict(state)
    assert "missing keys ['head.bias']" in str(caught.value)
    assert "unexpected keys ['tail.bias']" in str(caught.value)
    assert "wrong shapes ['conv.bias is (5,) instead of (2,)']" in str(caught.value)
    assert "Build the model with the same arguments" in str(caught.value)
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])
