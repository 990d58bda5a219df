"""How well a mean is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and what is known of it.

    Attributes
    ----------
    mean, sd : float
        Mean and standard deviation of the values; the latter is 0 for a single one.
    half : float
        Half the width of the confidence interval by Student's t; infinite for one value.
    """

    mean: float
    sd: float
    half: float


def mean_of(values: Sequence[float], confidence: float = 0.9) -> Mean:
    """Return the mean of independent values with its confidence interval.

    Parameters
    ----------
    values : sequence of float
        One or more.
    confidence : float
        Of the interval, two-sided.
    """
    number = len(values)
    if number == 1:
        return Mean(float(values[0]), 0.0, float("inf"))
    sd = float(np.std(values, ddof=1))
    quantile = float(stats.t.ppf((1 + confidence) / 2, number - 1))
    return Mean(float(np.mean(values)), sd, quantile * sd / number**0.5)
