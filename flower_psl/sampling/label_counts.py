"""The one check of numbers of examples by class."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_psl.errors import ConfigError

_LIMIT = 10**9  # NumPy's hypergeometric generators go no further


def label_counts(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """Return the numbers of examples of each class, or say what is wrong with them.

    Parameters
    ----------
    name : str
        Whose examples they are, as the error message shall call them.
    values : array_like of int, shape (C,)
        Examples of each class, at least 0, and at least one and below 10**9 in all.

    Returns
    -------
    NDArray[int64], shape (C,)
        The same numbers.

    Raises
    ------
    ConfigError
        If they are no whole numbers, have another number of dimensions, or lie outside the
        limits.
    """
    counts: NDArray[Any] = np.asarray(values)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ConfigError(
            f"{name}: label counts of {counts.dtype} and shape {counts.shape}; there must be one "
            "whole number for each class: pass integers of shape (classes,)"
        )
    if counts.size and counts.min() < 0:
        raise ConfigError(
            f"{name}: {counts.min()} examples of class {counts.argmin()}; a count is at least 0: "
            "correct it"
        )
    total = sum(counts.tolist())
    if not 0 < total < _LIMIT:
        raise ConfigError(
            f"{name}: {total} examples of {counts.size} classes; the label counts must add up to "
            f"at least 1 and less than {_LIMIT}: leave out who has no data, or scale the counts"
        )
    return counts.astype(np.int64)
