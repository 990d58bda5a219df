import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F

from flower_psl.errors import ConfigError, CutError
from flower_psl.split.check import check_split
from flower_psl.split.report import FindingKind
from flower_psl.split.split_model import SplitModel


def net(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def cnn() -> nn.Sequential:
    return net(
        conv=nn.Conv2d(1, 4, 3),
        norm=nn.GroupNorm(2, 4),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(4, 4, 3),
        flat=nn.Flatten(),
        head=nn.Linear(16, 10),
    )


X, Y = torch.randn(6, 1, 6, 6), torch.arange(6)


def vgg() -> nn.Module:
    """Build a VGG with BatchNorm, without its 120 million parameters of classifier."""
    model: nn.Module = zoo.vgg11_bn(init_weights=False)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 49, 10))
    return model


def vit() -> nn.Module:
    model: nn.Module = zoo.VisionTransformer(32, 16, 3, 4, 64, 128, dropout=0.1)
    return model


@pytest.mark.parametrize(
    ("build", "at"),
    [
        (zoo.resnet18, "layer1"),
        (zoo.resnet34, "layer1"),
        (zoo.resnet50, "layer1.0"),
        (zoo.mobilenet_v3_small, "features.4"),
        (vgg, "features.7"),
        (zoo.densenet121, "features.transition1"),
        (zoo.efficientnet_b0, "features.3"),
        (zoo.convnext_tiny, "features.2"),
        (vit, "encoder.layers.encoder_layer_0"),
    ],
)
def test_torchvision_models_agree(build: Callable[[], nn.Module], at: str) -> None:
    report = check_split(
        build(), torch.randn(6, 3, 32, 32), Y, at=at, loss_fn=nn.CrossEntropyLoss(), num_clients=3
    )
    assert report.passed, str(report)
    assert report.loss_difference <= 1e-14
    noisy = {f.module for f in report.findings}
    assert set(report.held_in_evaluation) == noisy


@pytest.mark.parametrize("num_clients", [1, 4, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_model_without_surprises_agrees_in_training_mode(
    num_clients: int, reduction: str
) -> None:
    report = check_split(
        cnn(),
        X,
        Y,
        at="relu",
        loss_fn=nn.CrossEntropyLoss(reduction=reduction),
        num_clients=num_clients,
        optimizer_fn=lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.1),
    )
    assert report.passed, str(report)
    assert report.findings == () and report.held_in_evaluation == ()
    assert (report.client_parameters, report.server_parameters) == (48, 318)
    assert report.activation_shape == (4, 4, 4)
    assert report.activation_bytes_per_example == 4 * 4 * 4 * 4
    assert report.memory.parameter_bytes == report.memory.gradient_bytes == 4 * 48
    # The input, what goes through GroupNorm and what comes out of ReLU, and GroupNorm's
    # mean and deviation of two groups.
    assert report.memory.bytes_per_example == 4 * (36 + 64 + 64 + 4)
    # A convolution of 16 places, 9 weights a place and 4 channels, and its weights' gradient;
    # the server's layers need their inputs' gradients as well.
    assert report.client_flops_per_example == 2 * 2 * 16 * 9 * 4
    assert report.server_flops_per_example == 3 * 2 * (4 * 36 * 4 + 16 * 10)


def test_the_bytes_are_those_of_the_models_own_precision() -> None:
    model = cnn().double()
    report = check_split(model, X.double(), Y, at="relu", loss_fn=F.cross_entropy)
    assert report.activation_bytes_per_example == 8 * 4 * 4 * 4
    assert report.memory.bytes_per_example == 8 * (36 + 64 + 64 + 4)


def test_nothing_that_was_given_changes() -> None:
    model = cnn().double()
    x, loss_fn = X.double(), nn.CrossEntropyLoss(weight=torch.rand(10).double())
    state, before = copy.deepcopy(model.state_dict()), x.clone()
    generator = torch.get_rng_state()
    assert check_split(net(first=nn.ReLU(True), rest=model), x, Y, at="first", loss_fn=loss_fn)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.linear = nn.Linear(3, 4)
        self.join = nn.Tanh()
        self.head = nn.Linear(4, 1)

    def forward(self, word: Tensor, value: Tensor) -> Tensor:
        y: Tensor = self.head(self.join(self.embed(word) + self.linear(value)))
        return y


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs(named: bool) -> None:
    word, value = torch.tensor([0, 1, 2, 3, 4]), torch.randn(5, 3)
    inputs: Any = {"value": value, "word": word} if named else (word, value)
    labels = torch.randn(5, 1)
    report = check_split(TwoInputs(), inputs, labels, at="join", loss_fn=nn.MSELoss())
    assert report.passed, str(report)


def halves(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    children = dict(model.named_children())
    names = list(children)
    client, server = names[:3], names[3:]
    return net(**{n: children[n] for n in client}), net(**{n: children[n] for n in server})


def test_hand_written_segments_agree() -> None:
    report = check_split(
        cnn(), X, Y, at=lambda model: SplitModel(*halves(model)), loss_fn=F.cross_entropy
    )
    assert report.passed, str(report)


class ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 1.001 * gradients[0]


def test_a_wrong_gradient_fails() -> None:
    def broken(model: nn.Module) -> SplitModel:
        client, server = halves(model)
        client.register_forward_hook(lambda module, args, output: ScaleGradient.apply(output))
        return SplitModel(client, server)

    report = check_split(cnn(), X, Y, at=broken, loss_fn=F.cross_entropy)
    assert not report.passed
    assert report.loss_difference <= 1e-12
    assert 1e-6 < report.gradient_difference < 1e-2
    assert report.weight_difference > 1e-9
    assert str(report).startswith("FAILED")


def test_a_wrong_forward_fails() -> None:
    def broken(model: nn.Module) -> SplitModel:
        client, server = halves(model)
        server.register_forward_hook(lambda module, args, output: 2 * output)
        return SplitModel(client, server)

    report = check_split(cnn(), X, Y, at=broken, loss_fn=F.cross_entropy)
    assert not report.passed and report.loss_difference > 1e-6


def test_a_loss_that_is_not_a_number_fails() -> None:
    report = check_split(cnn(), X, Y, at="relu", loss_fn=lambda out, labels: (out.sum() * 0) / 0)
    assert not report.passed


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.cut = nn.ReLU()
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.stem(x), 0.5, self.training)
        y: Tensor = self.head(self.cut(x))
        return y


def test_a_forward_that_draws_holds_the_whole_model() -> None:
    report = check_split(
        FunctionalDropout(), torch.randn(6, 4), Y, at="cut", loss_fn=F.cross_entropy
    )
    assert report.passed, str(report)
    assert report.held_in_evaluation == ("",)
    assert [(f.kind, f.segment, f.module) for f in report.findings] == [
        (FindingKind.RANDOM, "client", "")
    ]


def test_layers_with_changing_buffers_are_held() -> None:
    model = net(
        conv=nn.Conv1d(2, 2, 1),
        norm=nn.InstanceNorm1d(2, track_running_stats=True),
        cut=nn.ReLU(),
        flat=nn.Flatten(),
        spectral=nn.utils.parametrizations.spectral_norm(nn.Linear(6, 10)),
    )
    report = check_split(model, torch.randn(6, 2, 3), Y, at="cut", loss_fn=F.cross_entropy)
    assert report.passed, str(report)
    assert report.held_in_evaluation == ("norm",)


def test_a_frozen_client_segment_agrees() -> None:
    model = cnn()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    report = check_split(model, X, Y, at="relu", loss_fn=F.cross_entropy)
    assert report.passed, str(report)
    assert [finding.kind for finding in report.findings] == [FindingKind.FROZEN]


def refused(
    model: nn.Module | None = None,
    inputs: Any = X,
    labels: Any = Y,
    at: Any = "relu",
    loss_fn: Any = F.cross_entropy,
    num_clients: int = 2,
) -> str:
    with pytest.raises(ConfigError) as caught:
        check_split(
            cnn() if model is None else model,
            inputs,
            labels,
            at=at,
            loss_fn=loss_fn,
            num_clients=num_clients,
        )
    return str(caught.value)


@pytest.mark.parametrize("num_clients", [0, -1, 7])
def test_the_number_of_clients_is_checked(num_clients: int) -> None:
    message = refused(num_clients=num_clients)
    assert f"num_clients={num_clients} for a batch of 6" in message
    assert "at least one example" in message and "Take fewer clients" in message


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        (X[:5], "inputs is (5, 1, 6, 6)"),
        ((X, X[:4]), "inputs[1] is (4, 1, 6, 6)"),
        ({"x": X, "y": torch.tensor(1.0)}, "inputs['y'] is ()"),
        ([1, 2, 3], "inputs is list"),
    ],
)
def test_inputs_that_do_not_fit_the_labels_are_refused(inputs: Any, name: str) -> None:
    message = refused(inputs=inputs)
    assert message.startswith(name)
    assert "one entry for each of the same examples" in message
    assert "Pass one batch" in message


@pytest.mark.parametrize(("labels", "shown"), [(torch.tensor(1), "()"), (list(Y), "list")])
def test_labels_are_a_tensor_with_a_first_dimension(labels: Any, shown: str) -> None:
    assert refused(labels=labels).startswith(f"labels is {shown}; inputs and labels are tensors")


def test_a_model_on_the_meta_device_is_refused() -> None:
    assert "on the meta device" in refused(model=cnn().to("meta"))


def test_a_loss_with_parameters_is_refused() -> None:
    loss_fn = nn.CrossEntropyLoss()
    loss_fn.temperature = nn.Parameter(torch.ones(()))
    assert "['temperature']" in refused(loss_fn=loss_fn)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    assert "loss_fn returned (6,)" in refused(loss_fn=nn.CrossEntropyLoss(reduction="none"))


def test_what_at_returns_is_checked() -> None:
    message = refused(at=lambda model: model)
    assert "at returned a Sequential; it is the name of a layer, or a function" in message


def test_segments_with_other_keys_are_refused() -> None:
    message = refused(at=lambda model: SplitModel(net(a=nn.ReLU()), halves(model)[1]))
    assert "'conv.bias', 'conv.weight', 'norm.bias', 'norm.weight'" in message
    assert "Name their layers as the model does" in message


def test_a_cut_that_does_not_keep_the_examples_apart_is_refused() -> None:
    with pytest.raises(CutError, match=r"of 6 examples have 12 rows.*Cut where it is"):
        check_split(
            net(join=nn.Flatten(0, 1), cut=nn.ReLU(), head=nn.Linear(36, 10)),
            torch.randn(6, 2, 36),
            Y,
            at="cut",
            loss_fn=lambda out, labels: out.sum(),
        )
