"""By how much the labels of a batch deviate from those of the pooled data.

Here are the measures; `BatchLaw` has the law of what they measure, `SerflingBound` its bound.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.label_counts import label_counts


def label_deviations(batch_counts: ArrayLike, pooled_counts: ArrayLike) -> NDArray[np.float64]:
    """Return, class by class, the share in the batch less the share in the pooled data.

    Parameters
    ----------
    batch_counts : array_like of int, shape (C,)
        The batch's examples of each class.
    pooled_counts : array_like of int, shape (C,)
        The examples of each class that all clients have, this batch among them.

    Returns
    -------
    NDArray[float64], shape (C,)
        Deviations from -1 to 1, with sum 0.

    Raises
    ------
    ConfigError
        If the counts are no label counts, or a class has more examples in the batch than in
        the pooled data.
    """
    batch = label_counts("batch", batch_counts)
    pooled = label_counts("pooled data", pooled_counts)
    if batch.shape != pooled.shape:
        raise ConfigError(
            f"the batch has {batch.size} classes and the pooled data {pooled.size}; a batch is "
            "part of the pooled data: count the same classes in both"
        )
    excess = np.flatnonzero(batch > pooled)
    if excess.size:
        label = excess[0]
        raise ConfigError(
            f"class {label}: {batch[label]} examples in the batch, {pooled[label]} in the pooled "
            "data; a batch is part of the pooled data: count the data of all clients"
        )
    deviations: NDArray[np.float64] = batch / batch.sum() - pooled / pooled.sum()
    return deviations


def total_variation(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Return half the sum of the classes' absolute deviations.

    This is the largest deviation of the share of any *set* of classes:
    :math:`\max_A \sum_{c \in A} d_c`, taken by the classes with :math:`d_c > 0`, as the
    :math:`d_c` add up to 0.

    Parameters
    ----------
    deviations : NDArray[float64], shape (..., C)
        Deviations by class, of one batch or many.

    Returns
    -------
    NDArray[float64], shape (...)
        Total variation distances, from 0 to 1.
    """
    distances: NDArray[np.float64] = np.abs(deviations).sum(axis=-1) / 2
    return distances


def largest_class_deviation(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the absolute deviation of the class that deviates most.

    Parameters
    ----------
    deviations : NDArray[float64], shape (..., C)
        Deviations by class, of one batch or many.

    Returns
    -------
    NDArray[float64], shape (...)
        Max-norms, from 0 to 1; never above the total variation, and equal to it for C = 2.
    """
    largest: NDArray[np.float64] = np.abs(deviations).max(axis=-1)
    return largest
