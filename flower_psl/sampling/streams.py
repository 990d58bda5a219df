"""Random numbers as functions of a place in the run, never of a process's history."""

from enum import IntEnum

import numpy as np

from flower_psl.errors import ConfigError
from flower_psl.sampling.whole_number import whole_number


class Purpose(IntEnum):
    """What random numbers are for; streams of different purposes never meet.

    The numbers are part of every result that was ever published: they are never
    changed or used again.
    """

    SCHEDULE = 1
    PERMUTATION = 2
    CLIENT_FORWARD = 3
    SERVER_FORWARD = 4
    CLIENT_DATA = 5
    EVALUATION = 6
    ENCODING = 7
    SERVER_ORDER = 8
    REPLAN = 9


def generator(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """Return the generator that belongs to a place in the run.

    Parameters
    ----------
    seed : int
        The seed of the run, from 0 to 2**64 - 1.
    purpose : Purpose
        What the numbers are for.
    *position : int
        Where in the run: round, step, client key and the like, each from 0 to
        2**64 - 1. Positions that differ in any number, or in their length, have
        streams of their own.

    Returns
    -------
    numpy.random.Generator
        A new generator (PCG64), at its beginning.

    Raises
    ------
    ConfigError
        If a number is not whole or out of range, or `purpose` is no `Purpose`.
    """
    return np.random.default_rng(_seed_sequence(seed, purpose, position))


def derive_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """Return a seed for a generator that is not NumPy's, such as torch's.

    Parameters
    ----------
    seed : int
        The seed of the run, from 0 to 2**64 - 1.
    purpose : Purpose
        What the numbers are for.
    *position : int
        Where in the run, as in `generator`.

    Returns
    -------
    int
        A seed from 0 to 2**63 - 1, which fits a signed 64-bit integer.

    Raises
    ------
    ConfigError
        If a number is not whole or out of range, or `purpose` is no `Purpose`.
    """
    word = _seed_sequence(seed, purpose, position).generate_state(1, np.uint64)[0]
    return int(word) >> 1


def _seed_sequence(
    seed: int, purpose: Purpose, position: tuple[int, ...]
) -> np.random.SeedSequence:
    if not isinstance(purpose, Purpose):
        raise ConfigError(
            f"purpose is {purpose!r}; streams are told apart by a Purpose: pass one of "
            f"{', '.join(Purpose.__members__)}"
        )
    numbers = [
        whole_number("seed", seed, at_least=0, below=2**64),
        purpose.value,
        *(
            whole_number(f"position[{place}]", number, at_least=0, below=2**64)
            for place, number in enumerate(position)
        ),
    ]
    # SeedSequence would spend one 32-bit word on a small integer and more on a large one,
    # so that (2**32,) and (0, 1) were the same. Two words each keep them apart, and as
    # seed and purpose already fill its pool of four, no zero at the end is lost either.
    return np.random.SeedSequence(np.array(numbers, dtype="<u8").view("<u4").astype(np.uint32))
