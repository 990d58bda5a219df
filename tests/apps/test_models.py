from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from apps.image_classification.image_spec import ImageSpec
from apps.image_classification.models import (
    MODELS,
    build_model,
    check_model_fits,
    check_model_name,
    cut_of,
    initial_model,
    meta_model,
)
from flower_psl import cut

DIGITS = ImageSpec(num_channels=1, height=8, width=8, num_classes=10)
CIFAR = ImageSpec(num_channels=3, height=32, width=32, num_classes=7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spec", [DIGITS, CIFAR], ids=["digits", "cifar"])
def test_own_models_take_grey_and_colour(name: str, spec: ImageSpec) -> None:
    model = initial_model(name, spec, seed=0)
    scores = model(torch.zeros(2, spec.num_channels, spec.height, spec.width))
    assert scores.shape == (2, spec.num_classes)


def test_small_cnn_is_small() -> None:
    sizes = [parameter.numel() for parameter in meta_model("small-cnn", CIFAR).parameters()]
    assert 90_000 < sum(sizes) < 100_000


def test_cifar_resnets_keep_the_size_of_the_images_up_to_layer1() -> None:
    model = meta_model("resnet18-cifar", CIFAR)
    client = cut(model, at="layer1").client
    assert client(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 64, 32, 32)


@pytest.mark.parametrize("name", [*MODELS, "resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_default_cuts_divide_the_model(name: str) -> None:
    model = meta_model(name, CIFAR)
    split = cut(model, at=cut_of(model, name, ""))
    sizes = [len(list(segment.parameters())) for segment in (split.client, split.server)]
    assert min(sizes) > 0
    assert sum(sizes) == len(list(model.parameters()))


def test_a_cut_that_is_given_is_taken() -> None:
    assert cut_of(nn.Identity(), "resnet18", "layer3") == "layer3"


def test_a_model_without_a_default_cut_needs_one(refusal: Callable[..., str]) -> None:
    text = refusal(cut_of, meta_model("mobilenet_v2", CIFAR), "mobilenet_v2", "")
    assert "model = 'mobilenet_v2' has no default cut" in text
    assert "set cut to the name of a layer: features, classifier" in text


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = initial_model("small-cnn", DIGITS, seed=3).state_dict()
    torch.manual_seed(2)
    second = initial_model("small-cnn", DIGITS, seed=3).state_dict()
    other = initial_model("small-cnn", DIGITS, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", ["small-cnn", "resnet18-cifar", "vit_b_32"])
def test_building_leaves_torchs_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    meta_model(name, CIFAR)
    if name == "small-cnn":
        initial_model(name, CIFAR, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_meta_model_has_no_weights_but_the_same_names() -> None:
    meta, real = meta_model("small-cnn", DIGITS), initial_model("small-cnn", DIGITS, seed=0)
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert meta.state_dict().keys() == real.state_dict().keys()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    spec = ImageSpec(num_channels=3, height=299, width=299, num_classes=4)
    model = meta_model(name, spec).train()
    assert model(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 4)


def test_unknown_names_are_refused_with_those_that_come_near(refusal: Callable[..., str]) -> None:
    text = refusal(check_model_name, "mobilnet_v2")
    assert "model = 'mobilnet_v2' does not exist; did you mean 'mobilenet_v2'" in text
    assert "small-cnn, resnet18-cifar, resnet34-cifar" in text
    assert "did you mean" not in refusal(build_model, "qqq", DIGITS)


def test_grey_images_need_rgb_for_torchvisions_models(refusal: Callable[..., str]) -> None:
    text = refusal(build_model, "resnet18", DIGITS)
    assert "model = 'resnet18' takes RGB images, but those of the data have 1 channel" in text
    assert "set image-mode = 'RGB'" in text


def test_small_cnn_takes_images_of_8_pixels_but_not_of_7(refusal: Callable[..., str]) -> None:
    check_model_fits("small-cnn", DIGITS)
    text = refusal(check_model_fits, "small-cnn", replace(DIGITS, height=7))
    assert "cannot take images of 7 x 8 pixels" in text


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_images_of_the_wrong_size_are_refused(refusal: Callable[..., str], name: str) -> None:
    text = refusal(check_model_fits, name, CIFAR)
    assert f"model = {name!r} cannot take images of 32 x 32 pixels" in text
    assert "set image-size" in text


def test_outputs_that_are_no_scores_are_refused(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "small-cnn", lambda spec: nn.Identity())
    text = refusal(check_model_fits, "small-cnn", DIGITS)
    assert "model = 'small-cnn' returns torch.Size([1, 1, 8, 8])" in text
    assert "scores of shape (1, 10); choose another model" in text
