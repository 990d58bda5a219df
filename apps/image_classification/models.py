"""The models a run can choose from, and where each is cut unless told otherwise."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flower_psl import ConfigError

from .image_spec import ImageSpec

GROUPS = 8


class SmallCnn(nn.Module):
    """Three convolutional blocks and a linear layer; about 95,000 parameters.

    Every block halves the images, and global average pooling takes what is left: images
    of 8 x 8 pixels or more will do. GroupNorm treats every example by itself, so that a
    step of split learning has exactly the gradients of centralized training.

    Parameters
    ----------
    num_channels : int
    num_classes : int
    """

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.block1 = _block(num_channels, 32)
        self.block2 = _block(32, 64)
        self.block3 = _block(64, 128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes) for images of shape (N, C, H, W)."""
        features = self.block3(self.block2(self.block1(images)))
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits


def _block(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, kernel_size=3, padding=1),
        nn.GroupNorm(GROUPS, num_outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def _small_cnn(spec: ImageSpec) -> nn.Module:
    return SmallCnn(spec.num_channels, spec.num_classes)


def _cifar_resnet(name: str) -> Callable[[ImageSpec], nn.Module]:
    def build(spec: ImageSpec) -> nn.Module:
        model = _torchvision_model(name, num_classes=spec.num_classes)
        stem = nn.Conv2d(spec.num_channels, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
        model.maxpool = nn.Identity()
        return model

    return build


MODELS: dict[str, Callable[[ImageSpec], nn.Module]] = {
    "small-cnn": _small_cnn,
    "resnet18-cifar": _cifar_resnet("resnet18"),
    "resnet34-cifar": _cifar_resnet("resnet34"),
}
"""This app's own models; all of torchvision's classifiers can be had by their names too."""

DEFAULT_CUTS: dict[str, str] = {
    "small-cnn": "block1",
    "resnet": "layer1",
    "resnext": "layer1",
    "wide_resnet": "layer1",
}
"""The cut of the models whose name begins with a key."""

_WITHOUT_AUXILIARY_HEADS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def check_model_name(name: str) -> None:
    """Check that a model of this name can be built.

    Raises
    ------
    ConfigError
        If not; the message names those that come near.
    """
    if name not in MODELS and name not in (names := _torchvision_names()):
        near = difflib.get_close_matches(name, [*MODELS, *names])
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ConfigError(
            f"model = {name!r} does not exist; {hint}Choose one of {', '.join(MODELS)}, or an "
            "image classifier of torchvision by its name, such as 'mobilenet_v2'."
        )


def build_model(name: str, spec: ImageSpec) -> nn.Module:
    """Build a model, with random weights, on torch's current default device.

    Parameters
    ----------
    name : str
        A key of `MODELS`, or the name of a torchvision classifier.
    spec : ImageSpec
        The images it is for.

    Raises
    ------
    ConfigError
        If there is no such model, or if it cannot take the images' channels.
    """
    check_model_name(name)
    if name in MODELS:
        return MODELS[name](spec)
    if spec.num_channels != 3:
        raise ConfigError(
            f"model = {name!r} takes RGB images, but those of the data have {spec.num_channels} "
            "channel; set image-mode = 'RGB' to repeat it, or model = 'small-cnn'."
        )
    return _torchvision_model(
        name, num_classes=spec.num_classes, **_WITHOUT_AUXILIARY_HEADS.get(name, {})
    )


def meta_model(name: str, spec: ImageSpec) -> nn.Module:
    """Build a model without memory for its weights; see `build_model`."""
    with torch.device("meta"):
        return build_model(name, spec)


def initial_model(name: str, spec: ImageSpec, seed: int) -> nn.Module:
    """Build a model on the CPU whose weights depend on the seed only; see `build_model`."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return build_model(name, spec)


def check_model_fits(name: str, spec: ImageSpec) -> None:
    """Check, without computing anything, that a model turns the images into class scores.

    Raises
    ------
    ConfigError
        If it fails for images of this size, or its output has another shape.
    """
    model = meta_model(name, spec).eval()
    images = torch.empty(1, spec.num_channels, spec.height, spec.width, device="meta")
    size = f"{spec.height} x {spec.width}"
    try:
        output = model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model = {name!r} cannot take images of {size} pixels: {error}; set image-size to "
            "what the model was made for (often 224), or choose another model."
        ) from error
    shape = getattr(output, "shape", None)
    if shape != (1, spec.num_classes):
        raise ConfigError(
            f"model = {name!r} returns {shape or type(output).__name__} for one image; it has to "
            f"return scores of shape (1, {spec.num_classes}); choose another model."
        )


def cut_of(model: nn.Module, name: str, cut: str) -> str:
    """Return the name of the cut layer: the one configured, or the default of the model.

    Raises
    ------
    ConfigError
        If none is configured for a model that has no default.
    """
    defaults = [layer for start, layer in DEFAULT_CUTS.items() if name.startswith(start)]
    if not cut and not defaults:
        children = ", ".join(child for child, _ in model.named_children())
        raise ConfigError(
            f"cut is empty, but model = {name!r} has no default cut; set cut to the name of a "
            f"layer: {children}, or one inside of these, such as 'features.3'."
        )
    return cut or defaults[0]


# torchvision takes seconds to import, and in a deployment each message starts a process: a
# run with a model of the app's own does without.


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _torchvision_model(name: str, **arguments: Any) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, **arguments)
    return model
