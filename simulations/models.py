"""The models that the experiments train."""

from collections.abc import Callable

import torch
import torchvision
from torch import nn

from flower_psl import to_group_norm
from simulations.image_data import NUM_CLASSES


def _cnn(channels: int, pixels: int) -> nn.Module:
    """Return three blocks that halve the image, and a linear layer; 34,000 parameters."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        # Pooling before the norm does the same with a quarter of the work.
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.MaxPool2d(2),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
        )

    model = nn.Sequential()
    for number, (inputs, outputs) in enumerate([(channels, 16), (16, 32), (32, 64)], 1):
        model.add_module(f"block{number}", block(inputs, outputs))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(64 * (pixels // 8) ** 2, NUM_CLASSES))
    return model


def _resnet18(channels: int, pixels: int) -> nn.Module:
    """Return ResNet-18 with a stem for small images, and GroupNorm for BatchNorm."""
    model: nn.Module = torchvision.models.resnet18(num_classes=NUM_CLASSES)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return to_group_norm(model)


MODELS: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "cnn": (_cnn, "block1"),
    "resnet18": (_resnet18, "layer1"),
}
"""By name: what builds the model from channels and pixels a side, and where it is cut."""


def initial_model(name: str, channels: int, pixels: int, seed: int) -> nn.Module:
    """Return a model whose weights depend on the seed only.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    channels, pixels : int
        Of the images: colours, and height and width.
    seed : int
        Of the weights.
    """
    build, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(channels, pixels)
