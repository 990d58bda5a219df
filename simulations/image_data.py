"""The experiments' images, decoded once a process into tensors."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from datasets.exceptions import DatasetsError
from flwr_datasets import FederatedDataset
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from flower_psl import ConfigError

NUM_CLASSES = 10

# Published mean and standard deviation of CIFAR-10's training pixels in [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_DIGITS_TEST_EXAMPLES = 360
_ORDER_SEED = 0


@dataclass(frozen=True)
class ImageData:
    """Normalized images ``(N, C, H, W)``, float32, and labels ``(N,)``, int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@cache
def load_images(data: str, path: str, examples: int, test_examples: int) -> ImageData:
    """Load training and test images; the same for all seeds.

    Parameters
    ----------
    data : {"digits", "cifar10"}
        Digits are part of scikit-learn and need no download.
    path : str
        Of CIFAR-10: a name on the Hugging Face Hub, or a local folder in its layout.
    examples, test_examples : int
        How many at most, drawn at random; 0 = all.

    Raises
    ------
    ConfigError
        If there are no such data, or they cannot be loaded.
    """
    if data == "digits":
        return _digits(examples, test_examples)
    if data == "cifar10":
        return _cifar10(path, examples, test_examples)
    raise ConfigError(f"data is {data!r}; it must be 'digits' or 'cifar10'")


def _digits(examples: int, test_examples: int) -> ImageData:
    scans = load_digits()
    images = torch.tensor(scans.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(scans.target)
    order = _some(len(labels), 0)
    test = order[:_DIGITS_TEST_EXAMPLES][: test_examples or None]
    train = order[_DIGITS_TEST_EXAMPLES:][: examples or None]
    return ImageData(images[train], labels[train], images[test], labels[test])


def _cifar10(path: str, examples: int, test_examples: int) -> ImageData:
    disable_progress_bars()
    try:
        source = FederatedDataset(dataset=path, partitioners={}, shuffle=False)
        train, test = source.load_split("train"), source.load_split("test")
    except (OSError, ValueError, DatasetsError) as error:
        raise ConfigError(
            f"CIFAR-10 cannot be loaded from {path!r} ({str(error).partition('. ')[0]}); give "
            "--data-path a folder with the files of uoft-cs/cifar10, or take --data digits"
        ) from error
    return ImageData(*_tensors(train, examples), *_tensors(test, test_examples))


def _tensors(split: Dataset, at_most: int) -> tuple[Tensor, Tensor]:
    rows = split.select(_some(len(split), at_most))
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in rows["img"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255  # (N, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_CIFAR10_MEAN, _CIFAR10_STD))
    return ((images - mean) / std).contiguous(), torch.tensor(rows["label"][:])


def _some(available: int, at_most: int) -> NDArray[np.int64]:
    order = np.random.default_rng(_ORDER_SEED).permutation(available)
    return order[: at_most or None]
