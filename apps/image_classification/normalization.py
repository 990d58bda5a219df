"""From 8-bit pixels to inputs of a model: scale to [0, 1], then subtract and divide.

Nobody sees the pooled data in a federated setting, so its mean and standard deviation
cannot be computed in a run. Well-known data sets have published ones; for all others a
fixed mapping of [0, 1] to [-1, 1] serves, unless the configuration gives better values.
"""

import math
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor

from flower_psl import ConfigError


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of pixels in [0, 1]: one value, or one for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


UNKNOWN = Statistics((0.5,), (0.5,))

KNOWN: dict[str, Statistics] = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": Statistics((0.3053,), (0.3759,)),
    "fashion_mnist": Statistics((0.2860,), (0.3530,)),
    "mnist": Statistics((0.1307,), (0.3081,)),
    "svhn": Statistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
"""Published statistics of training splits, by the last part of a data set's name or path."""


def parse_statistics(mean: str, std: str) -> Statistics | None:
    """Parse comma-separated values for mean and standard deviation.

    Returns
    -------
    Statistics or None
        None if both are empty.

    Raises
    ------
    ConfigError
        If one is given without the other, if they differ in length, if a value is not a
        finite number, or if a standard deviation is not above zero.
    """
    if not mean and not std:
        return None
    parsed = Statistics(_numbers("normalize-mean", mean), _numbers("normalize-std", std))
    if len(parsed.mean) != len(parsed.std):
        raise ConfigError(
            f"normalize-mean = {mean!r} and normalize-std = {std!r} have {len(parsed.mean)} and "
            f"{len(parsed.std)} values; give both, with one value or one for each channel."
        )
    if min(parsed.std, default=0.0) <= 0.0:
        raise ConfigError(
            f"normalize-std = {std!r} has a value that is not above 0, and pixels are divided by "
            "it; give the standard deviation of pixels in [0, 1]."
        )
    return parsed


def statistics_for(dataset: str, mean: str, std: str) -> Statistics:
    """Return what was configured, else what is known of the data set, else `UNKNOWN`."""
    known_as = PurePath(dataset).name.lower().replace("-", "_")
    return parse_statistics(mean, std) or KNOWN.get(known_as, UNKNOWN)


def normalized(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Normalize images.

    Parameters
    ----------
    pixels : Tensor, shape (N, C, H, W), uint8
    statistics : Statistics

    Returns
    -------
    Tensor, shape (N, C, H, W), float32

    Raises
    ------
    ConfigError
        If there are several values, but not one for each channel.
    """
    num_channels, num_values = pixels.shape[1], len(statistics.mean)
    if num_values not in (1, num_channels):
        raise ConfigError(
            f"normalization has {num_values} values, but the images have {num_channels} channels; "
            "set normalize-mean and normalize-std to one value, or one for each channel."
        )
    mean = torch.tensor(statistics.mean).view(1, -1, 1, 1)
    std = torch.tensor(statistics.std).view(1, -1, 1, 1)
    return pixels.float().div_(255.0).sub_(mean).div_(std)


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{key} = {text!r} is not a list of finite numbers; separate them by commas: "
            f'{key} = "0.49, 0.48, 0.45".'
        )
    return numbers
