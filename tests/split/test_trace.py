import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flower_psl.errors import CutError
from flower_psl.split.trace import ancestors, required_inputs, trace


class Net(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)
        self.between = between
        self.constant = torch.full((2,), 3.0)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self.stem(x)))
        return y


def test_ancestors() -> None:
    assert ancestors("a") == [""]
    assert ancestors("layer1.0.conv1") == ["", "layer1", "layer1.0"]


def test_required_inputs_leave_out_what_has_a_default() -> None:
    class Many(nn.Module):
        def forward(self, a: Tensor, b: int = 1, *rest: Tensor, c: Tensor, **more: int) -> None:
            raise NotImplementedError

    assert str(required_inputs(Many())) == "(a, *, c)"


def test_only_the_forwards_around_the_cut_are_traced() -> None:
    branching = Net(lambda x: x if bool(x.sum() > 0) else -x)
    graph = trace(nn.Sequential(nn.Identity(), branching), "0", training=True)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    assert calls == ["0", "1"]


def refused(between: Callable[[Tensor], Tensor], path: str = "stem") -> str:
    model = Net(between)
    whole = model if path == "stem" else nn.Sequential(nn.Identity(), model)
    was_training = {name: module.training for name, module in whole.named_modules()}
    with pytest.raises(CutError) as caught:
        trace(whole, path, training=False)
    assert {name: module.training for name, module in whole.named_modules()} == was_training
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"), [("stem", "the model (Net)"), ("1.stem", "module '1' (Net)")]
)
def test_branches_on_values_are_refused(path: str, name: str) -> None:
    message = refused(lambda x: x if x.sum() > 0 else -x, path)
    assert message.startswith(f"{name} cannot be traced (TraceError: ")
    assert "must not branch or loop on values" in message
    assert "two hand-written modules to SplitModel" in message


def test_other_failures_of_a_forward_are_refused_with_their_reason() -> None:
    message = refused(lambda x: torch.full((int(x.shape[0]), 2), 1.0) + x)
    assert "the model (Net) cannot be traced (TypeError: " in message


def test_tensors_made_in_forward_are_refused() -> None:
    message = refused(lambda x: x * torch.rand(2))
    assert "the model (Net) makes a tensor of shape (2,) in its forward" in message
    assert "would freeze its values" in message and "Register it as a buffer" in message


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()).item(), random.random], ids=["torch", "python"]
)
def test_random_draws_outside_of_layers_are_refused(draw: Callable[[], float]) -> None:
    message = refused(lambda x: x * draw())
    assert "around the cut draw random numbers outside of any layer" in message
    assert "would freeze them" in message and "in a submodule" in message


def test_draws_of_another_thread_do_not_count() -> None:
    drawn: list[float] = []

    def passing(x: Tensor) -> Tensor:
        if not drawn:  # as if at that moment
            drawn.append(random.random())
        return x

    assert trace(Net(passing), "stem", training=True).nodes
    assert len(drawn) == 1


def test_plain_tensor_attributes_are_read_not_frozen() -> None:
    model = Net(lambda x: x * model.constant)
    graph = trace(model, "stem", training=True)
    assert "constant" in [node.target for node in graph.nodes if node.op == "get_attr"]


def test_attributes_that_a_forward_sets_are_put_back() -> None:
    class Remembers(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            y: Tensor = self.head(self.stem(self.last))
            return y

    model = Remembers(torch.relu)
    model.calls = 5
    trace(model, "head", training=True)
    assert model.calls == 5 and not hasattr(model, "last")
