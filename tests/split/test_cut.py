import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from flower_psl.errors import CutError
from flower_psl.split.cut import cut


def outputs(model: Callable[..., Any], *inputs: Tensor) -> Any:
    """Run a model with the same random numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return model(*inputs)


def assert_same_model(model: nn.Module, at: str, *inputs: Tensor) -> None:
    split = cut(model, at)
    assert list(split.state_dict()) == list(model.state_dict())
    assert [n for n, _ in split.named_parameters()] == [n for n, _ in model.named_parameters()]
    client_keys, server_keys = set(split.client.state_dict()), set(split.server.state_dict())
    assert client_keys.isdisjoint(server_keys)
    for training in (True, False):
        reference = copy.deepcopy(model).train(training)
        expected = outputs(reference, *inputs)
        assert torch.equal(outputs(split.train(training), *inputs), expected)
        for key, value in reference.state_dict().items():
            assert torch.equal(split.state_dict()[key], value), key


VGG_WITHOUT_ITS_HUGE_HEAD = zoo.vgg.make_layers([8, "M", 16, "M", 16], batch_norm=True)


@pytest.mark.parametrize(
    ("build", "at", "size", "options"),
    [
        (zoo.resnet18, "layer1", 64, {}),
        (zoo.resnet18, "maxpool", 64, {}),
        (zoo.resnet34, "layer2", 64, {}),
        (zoo.resnet50, "layer1.0", 64, {}),
        (zoo.mobilenet_v3_small, "features.4", 64, {}),
        (zoo.mobilenet_v3_large, "features.6", 64, {}),
        (zoo.vgg11_bn, "features.7", 32, {}),
        (zoo.densenet121, "features.transition1", 64, {}),
        (zoo.efficientnet_b0, "features.3", 64, {}),
        (zoo.convnext_tiny, "features.2", 64, {}),
        (zoo.vit_b_16, "encoder.layers.encoder_layer_0", 32, {"image_size": 32, "dropout": 0.1}),
        (zoo.swin_t, "features.1", 64, {}),
        (zoo.regnet_y_400mf, "trunk_output.block1", 64, {}),
        (zoo.googlenet, "inception3b", 64, {"aux_logits": False, "init_weights": False}),
        (zoo.inception_v3, "Mixed_5b", 96, {"aux_logits": False, "init_weights": False}),
    ],
)
def test_torchvision_models_keep_every_bit(
    build: Callable[..., nn.Module], at: str, size: int, options: dict[str, Any]
) -> None:
    model = build(num_classes=10, **options)
    assert_same_model(model, at, torch.randn(2, 3, size, size))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.5, self.training)
        return F.relu_(self.second(x))


class Net(nn.Module):
    """Parameters of its own, buffers, functional dropout, and layers that are not used."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.body = Body()
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token.expand(2, -1, -1)[0] * self.scale.abs()
        y: Tensor = self.head(self.body(x) + self.shift)
        return y.softmax(dim=-1) if self.training else y


@pytest.mark.parametrize("at", ["body.first", "body.second", "body.second.0", "body"])
def test_code_around_the_cut_is_kept_in_both_modes(at: str) -> None:
    assert_same_model(Net(), at, torch.randn(6, 4))


def test_buffers_keep_their_side_and_their_persistence() -> None:
    split = cut(Net(), "body.first")
    assert set(dict(split.client.named_buffers())) == {"scale"}
    assert "scale" not in split.state_dict()
    assert "shift" in split.server.state_dict()
    assert "body.unused.weight" in split.server.state_dict()


def test_segments_share_the_models_tensors() -> None:
    model = Net()
    split = cut(model, "body")
    own = dict(model.named_parameters())
    assert all(own[name] is parameter for name, parameter in split.named_parameters())


def test_the_model_stays_as_it_is() -> None:
    model = Net().eval()
    model.head.train()
    state = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    generator = torch.get_rng_state()
    split = cut(model, "body.first")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not split.client.training and not split.server.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_meta_device() -> None:
    with torch.device("meta"):
        split = cut(zoo.resnet18(num_classes=10), "layer1")
    model = zoo.resnet18(num_classes=10).eval()
    assert all(tensor.is_meta for tensor in split.state_dict().values())
    assert list(split.state_dict()) == list(model.state_dict())
    client = split.client.to_empty(device="cpu").eval()
    client.load_state_dict({name: model.state_dict()[name] for name in client.state_dict()})
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(client(x), cut(model, "layer1").client(x))


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda split: pickle.loads(pickle.dumps(split))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_whole_and_independent(twin: Callable[[Any], Any]) -> None:
    model = zoo.mobilenet_v3_small(num_classes=10)
    split = cut(model, "features.4")
    other = twin(split)
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        assert torch.equal(
            outputs(other.train(training), x), outputs(copy.deepcopy(model).train(training), x)
        ), training
        other.load_state_dict(model.state_dict())
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert bool(next(model.parameters()).any())


def test_functional_call_replaces_a_segments_weights() -> None:
    split = cut(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "0")
    weights = {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)}
    x = torch.randn(3, 2)
    assert torch.equal(functional_call(split.client, weights, (x,)), x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(2, 4)
        self.right = nn.Linear(3, 4)
        self.join = nn.ReLU()
        self.head = nn.Linear(4, 1)

    def forward(self, a: Tensor, *, b: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.left(a) + self.right(b)
        if mask is not None:
            x = x * mask
        y: Tensor = self.head(self.join(x))
        return y


def test_several_inputs_by_position_and_by_name() -> None:
    model = TwoInputs()
    split = cut(model, "join")
    a, b = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(split(a, b=b), model(a, b=b))
    assert torch.equal(split(**{"b": b, "a": a}), model(a, b=b))


def test_optional_inputs_keep_their_default() -> None:
    split = cut(TwoInputs(), "join")
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        split(torch.randn(5, 2), b=torch.randn(5, 3), mask=torch.ones(5, 4))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 4)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.head(self.stem(x))
        return {"y": y, "parts": [y[:, :3], y[:, 3:]], "shape": (y.shape[0], 6)}


def test_outputs_in_containers_keep_their_types() -> None:
    model = DictOutput()
    x = torch.randn(5, 2)
    found, expected = cut(model, "stem")(x), model(x)
    assert type(found) is dict and type(found["parts"]) is list
    assert found["shape"] == expected["shape"] == (5, 6)
    assert torch.equal(found["parts"][1], expected["parts"][1])


def test_hooks_of_the_model_itself_are_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model.register_forward_hook(lambda module, args, output: 2 * output)
    assert_same_model(model, "0", torch.randn(3, 2))


def test_gradients_flow_through_both_segments() -> None:
    model = zoo.vgg.VGG(VGG_WITHOUT_ITS_HUGE_HEAD)
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 10))
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 16, 16)
    model(x).square().sum().backward()
    cut(twin, "features.6")(x).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert torch.equal(parameter.grad, other.grad), name


@pytest.mark.parametrize("at", ["layer11", "", "features.0", "layer1."])
def test_unknown_names_are_refused(at: str) -> None:
    with pytest.raises(CutError) as caught:
        cut(zoo.resnet18(num_classes=10), at)
    message = str(caught.value)
    near = ("layer11", "layer1.")
    assert f"at={at!r} names no submodule of ResNet" in message
    assert "model.named_modules()" in message
    assert "'conv1', 'bn1', 'relu', 'maxpool', 'layer1'" in message
    assert ("Did you mean [" in message and "'layer1'" in message.split("?")[0]) == (at in near)


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def get_extra_state(self) -> Tensor:
        return torch.zeros(1)

    def set_extra_state(self, state: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.stem(x))
        return y


def test_keys_that_would_be_lost_are_refused() -> None:
    with pytest.raises(CutError, match=r"\['_extra_state'\].*would be lost.*hand-written"):
        cut(ExtraState(), "stem")
    nested = nn.Sequential(OrderedDict(body=ExtraState(), tail=nn.ReLU()))
    assert "body._extra_state" in cut(nested, "body").client.state_dict()
