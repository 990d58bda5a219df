"""Global sampling (GPSL): every step is a uniform draw from the pooled data."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.streams import Purpose, generator
from flower_psl.sampling.whole_number import whole_number

_BLOCK = 2**16  # chunks looked at at a time: bounds the memory of Python integers


@dataclass(frozen=True)
class GlobalSampler(Sampler):
    r"""GPSL: global batches of fixed size, drawn uniformly from the pooled data.

    The word in which the key of each client k stands D_k times is shuffled, and each run of
    B letters is a step: how often k occurs in it is its batch size b_k. With the clients'
    own uniform permutations of their data, a round is exactly centralized uniform sampling
    without replacement, jointly over all its steps: every example is used once, and every
    global batch has exactly B examples but for the last, which has the rest.

    Notes
    -----
    The batch sizes of a step of B examples are multivariate hypergeometric. With
    p_k = D_k / D, for clients k != j,

    .. math::
        E[b_k] = B p_k, \quad
        Var[b_k] = B p_k (1 - p_k) \frac{D - B}{D - 1}, \quad
        Cov[b_k, b_j] = -B p_k p_j \frac{D - B}{D - 1},

    and between two different steps t and s of B examples

    .. math::
        Cov[b_k^t, b_k^s] = -\frac{B^2 p_k (1 - p_k)}{D - 1}, \quad
        Cov[b_k^t, b_j^s] = \frac{B^2 p_k p_j}{D - 1}.

    This is the law of arXiv:2407.15738 (v5, v6), where the server draws the clients of a
    batch one by one in proportion to the data they have left. Shuffling once gives the same
    joint law in one pass.

    `min_client_batch` = m departs from the paper, against BatchNorm over a single example and
    because a batch of one reveals that example's gradient. The data of client k form
    max(1, floor(D_k / m)) chunks whose sizes differ by at most one and stay below 2 m, and
    chunks are shuffled instead of examples. A step closes when the next chunk would exceed B.
    So a client contributes at least m examples to a step or none (a client with fewer than m
    examples has a single chunk of all of them), every example is still used once a round,
    and a step has between B - 2 m + 2 and B examples, but for the last. If m divides B and
    every D_k, steps have exactly B examples and the variance of b_k above grows by the
    factor m (D - 1) / (D - m), its mean unchanged. Otherwise, as steps close by size, means
    are only nearly B p_k.

    A schedule takes 1 byte an example for up to 256 clients, 2 for up to 65,536 and 4 beyond,
    while it is made and after, besides what it keeps of each client. With m > 1 it takes 2 to
    6 bytes a chunk (m up to 32,767) and 8 a step.

    Parameters
    ----------
    batch_size : int
        The global batch size B, in examples: at least 2 m - 1, so that any chunk fits.
    seed : int, default 0
        From 0 to 2**64 - 1. A schedule is a function of (seed, round, numbers of examples).
    drop_last : bool, default False
        Leave out the last step if it has fewer than B - 2 m + 2 examples, that is, if any
        chunk would still have fitted in. For m = 1: if it has fewer than B.
    min_client_batch : int, default 1
        The smallest batch m of a client, in examples. 1 is the sampling of the paper.

    Raises
    ------
    ConfigError
        If an argument is invalid.
    """

    name: ClassVar[str] = "GPSL"

    batch_size: int
    seed: int = 0
    drop_last: bool = False
    min_client_batch: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        size = whole_number("batch_size", self.batch_size, at_least=1)
        seed = whole_number("seed", self.seed, at_least=0, below=2**64)
        least = whole_number("min_client_batch", self.min_client_batch, at_least=1)
        if not isinstance(self.drop_last, bool):
            raise ConfigError(f"drop_last is {self.drop_last!r}; it must be True or False")
        if size < 2 * least - 1:
            raise ConfigError(
                f"batch_size is {size} with min_client_batch {least}; a chunk can have "
                f"2 * {least} - 1 examples and must fit into a step: choose batch_size >= "
                f"{2 * least - 1} or min_client_batch <= {(size + 1) // 2}"
            )
        # NumPy integers are welcome, but their arithmetic could overflow.
        object.__setattr__(self, "batch_size", size)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "min_client_batch", least)

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Draw the schedule of one round; see `Sampler.schedule`."""
        server_round = whole_number("server_round", server_round, at_least=0)
        pool = Pool.of(num_examples)
        pool.check_batch_size(self.batch_size)
        rng = generator(self.seed, Purpose.SCHEDULE, server_round)
        if self.min_client_batch == 1:
            return self._shuffle_examples(pool, rng)
        return self._shuffle_chunks(pool, rng)

    def replan(
        self, left: Mapping[int, int], server_round: int, plan: int
    ) -> BatchSchedule | None:
        """Draw what is left of a round anew; see `Sampler.replan`."""
        total = sum(left.values())
        if self.drop_last and total < self.batch_size - 2 * self.min_client_batch + 2:
            return None
        # Two chunks of the smallest batch must fit into a step, however little is left.
        least = min(self.min_client_batch, (total + 1) // 2) or 1
        return Sampler.replan(replace(self, min_client_batch=least), left, server_round, plan)

    def _shuffle_examples(self, pool: Pool, rng: np.random.Generator) -> BatchSchedule:
        word = np.repeat(pool.letters, pool.counts)
        rng.shuffle(word)
        if self.drop_last:
            word = word[: len(word) - len(word) % self.batch_size]
        return BatchSchedule(pool, word, range(0, len(word) + self.batch_size, self.batch_size))

    def _shuffle_chunks(self, pool: Pool, rng: np.random.Generator) -> BatchSchedule:
        word = _chunk_word(pool, self.min_client_batch)
        rng.shuffle(word)
        bounds = _close_steps(word["size"], self.batch_size)
        last_step = word["size"][bounds[-2] :]
        if self.drop_last and last_step.sum() < self.batch_size - 2 * self.min_client_batch + 2:
            bounds.pop()
        word = word[: bounds[-1]]
        return BatchSchedule(pool, word["letter"], bounds, word["size"])


def _chunk_word(pool: Pool, least: int) -> NDArray[np.void]:
    """Return all chunks in order of the clients, as an array of (letter, size)."""
    num_chunks = np.maximum(1, pool.counts // least)
    small, num_large = np.divmod(pool.counts, num_chunks)
    letters = pool.letters
    dtype = [("letter", letters.dtype), ("size", np.min_scalar_type(2 * least))]
    kinds = np.empty((len(letters), 2), dtype)  # each client's small and large chunk
    kinds["letter"] = letters[:, np.newaxis]
    kinds["size"] = np.column_stack([small, small + 1])
    return np.repeat(kinds.ravel(), np.column_stack([num_chunks - num_large, num_large]).ravel())


def _close_steps(sizes: NDArray[np.integer[Any]], batch_size: int) -> "array[int]":
    """Return the bounds of steps that each close when the next chunk would not fit."""
    bounds = array("q", [0])
    room = batch_size
    for start in range(0, len(sizes), _BLOCK):
        for place, size in enumerate(sizes[start : start + _BLOCK].tolist(), start):
            if size > room:
                bounds.append(place)
                room = batch_size
            room -= size
    bounds.append(len(sizes))
    return bounds
