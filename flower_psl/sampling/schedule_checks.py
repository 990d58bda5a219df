"""What a schedule's word must be, looked at when it is made."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.pool import Pool


def check_integers(name: str, values: NDArray[Any]) -> None:
    """Refuse what is no one-dimensional array of integers."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ConfigError(
            f"{name} is an array of {values.dtype} of shape {values.shape}; it must have one "
            "dimension and an integer dtype: convert it"
        )


def check_bounds(bounds: Sequence[int], num_letters: int) -> None:
    """Refuse steps that are empty or do not cover all letters."""
    if len(bounds) < 2:
        raise ConfigError(
            f"the schedule has {max(len(bounds) - 1, 0)} steps; a round needs at least one: "
            "add a step"
        )
    for step, (start, end) in enumerate(pairwise(bounds)):
        if start >= end or start >= num_letters:
            raise ConfigError(
                f"step {step} is empty: it runs from letter {start} to {end} of {num_letters}; "
                "every step needs at least one example: leave the step out"
            )
    if bounds[0] != 0 or bounds[-1] < num_letters:
        raise ConfigError(
            f"the steps run from letter {bounds[0]} to {bounds[-1]} of {num_letters}; they must "
            "cover all letters: begin the bounds at 0 and end them at the number of letters"
        )


def check_letters(letters: NDArray[np.integer[Any]], pool: Pool) -> None:
    """Refuse letters that stand for no client."""
    last = len(pool.keys) - 1
    for letter in (int(letters.min()), int(letters.max())):
        if not 0 <= letter <= last:
            raise ConfigError(
                f"letter {letter} stands for no client; letters are places in pool.keys, from "
                f"0 to {last}: use those"
            )


def check_sizes(
    sizes: NDArray[np.integer[Any]], letters: NDArray[np.integer[Any]], pool: Pool
) -> None:
    """Refuse sizes below 1, or beyond what the client has."""
    if len(sizes) != len(letters):
        raise ConfigError(
            f"{len(sizes)} sizes for {len(letters)} letters; every letter needs one size: pass "
            "arrays of the same length"
        )
    least = int(sizes.argmin())
    if sizes[least] < 1:
        raise ConfigError(
            f"client {pool.keys[int(letters[least])]} gives {sizes[least]} examples; a client "
            "in a step gives at least 1: leave it out of the step"
        )
    # Sizes below 2**32, as all counts are, also keep the sums that follow within int64.
    largest = int(sizes.argmax())
    letter = int(letters[largest])
    if sizes[largest] > pool.counts[letter]:
        raise _excess(pool, letter, int(sizes[largest]))


def check_totals(totals: NDArray[np.int64], pool: Pool) -> None:
    """Refuse a round in which a client gives more than it has."""
    above = np.flatnonzero(totals > pool.counts)
    if above.size:
        raise _excess(pool, int(above[0]), int(totals[above[0]]))


def _excess(pool: Pool, letter: int, given: int) -> ConfigError:
    return ConfigError(
        f"client {pool.keys[letter]} gives {given} examples in the round but has "
        f"{pool.counts[letter]}; no example is used twice in a round: lower the client's "
        "batch sizes"
    )
