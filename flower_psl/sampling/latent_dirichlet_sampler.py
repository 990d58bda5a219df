"""Latent Dirichlet sampling: global batches whose client shares are drawn first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flower_psl.sampling.global_sampler import GlobalSampler
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.real_number import real_number
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.streams import Purpose, generator
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True, kw_only=True)
class LatentDirichletSampler(Sampler):
    r"""Global batches of fixed size in which a few clients, changing by chance, give most.

    For every step, shares pi are drawn from the Dirichlet distribution with parameters
    alpha r_k / R, where client k has r_k of the R examples that are left in the round. Each
    example left of client k then weighs pi_k / r_k, and the B examples of the step are drawn
    one by one, without replacement, by weight. The mean of pi_k is r_k / R: the smaller the
    concentration alpha, the fewer clients a step has, and the fewer steps wait for a given
    client. The larger, the nearer to global sampling; at infinity the schedule is that of
    `GlobalSampler`, bit for bit. Every example is used once a round and every step but the last
    has exactly B examples; but the end of a round belongs to the clients that chance left.

    This is a baseline after the idea of arXiv:2407.15738, versions 1 to 3, by their abstract:
    a Dirichlet generalization of uniform global sampling that trades the deviation of batches
    for time. Their text may differ, in particular in how the shares are drawn (here as gamma
    variates, in proportion to the data left, one concentration for all clients) and in what
    is done about a client whose share exceeds its data (here its weight goes to the others).

    A round costs on the order of K T operations.

    Parameters
    ----------
    batch_size : int
        The global batch size B, in examples.
    concentration : float
        alpha, at least 1e-9; ``math.inf`` is global sampling.
    seed : int, default 0
        From 0 to 2**64 - 1. A schedule is a function of (seed, round, numbers of examples).

    Raises
    ------
    ConfigError
        If an argument is invalid.
    """

    name: ClassVar[str] = "LDS"

    batch_size: int
    concentration: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        size = whole_number("batch_size", self.batch_size, at_least=1)
        alpha = real_number("concentration", self.concentration, at_least=1e-9, finite=False)
        seed = whole_number("seed", self.seed, at_least=0, below=2**64)
        object.__setattr__(self, "batch_size", size)
        object.__setattr__(self, "concentration", alpha)
        object.__setattr__(self, "seed", seed)

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Draw the schedule of one round; see `Sampler.schedule`."""
        server_round = whole_number("server_round", server_round, at_least=0)
        if math.isinf(self.concentration):
            return GlobalSampler(self.batch_size, self.seed).schedule(num_examples, server_round)
        pool = Pool.of(num_examples)
        pool.check_batch_size(self.batch_size)
        rng = generator(self.seed, Purpose.SCHEDULE, server_round)
        letters, left = pool.letters, pool.counts
        word = np.empty(pool.num_examples, dtype=letters.dtype)
        bounds = range(0, len(word) + self.batch_size, self.batch_size)
        for start in bounds[:-1]:
            step = word[start : start + self.batch_size]
            batch = _draw(left, self._log_weights(left, rng), len(step), rng)
            step[:] = np.repeat(letters, batch)
            left = left - batch
            letters, left = letters[left > 0], left[left > 0]
        return BatchSchedule(pool, word, bounds)

    def _log_weights(
        self, left: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the logarithm of each client's weight of one example, up to a constant."""
        shape = self.concentration * left / left.sum()
        # A gamma variate of small shape underflows; its logarithm, by way of shape + 1, does not.
        log_gamma = np.log(rng.standard_gamma(shape + 1.0))
        log_gamma -= rng.standard_exponential(len(shape)) / shape
        log_weights: NDArray[np.float64] = log_gamma - np.log(left)
        return log_weights


def _draw(
    left: NDArray[np.int64],
    log_weights: NDArray[np.float64],
    size: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw `size` of the examples left, one by one by weight; return each client's number.

    Successive draws by weight have the law of clocks: every example rings after an
    exponential time whose rate is its weight, and the first `size` to ring are drawn. A
    client's j-th ring follows the one before by an exponential time over its examples that
    have not rung. Rings are made in blocks, for the clients that may still have an early one.
    """
    owners = np.empty(0, dtype=np.int64)
    times = np.empty(0)  # their logarithms, by which the weights may differ by any factor
    latest = math.inf
    clocks = np.zeros(len(left))
    rung, block = 0, 1
    active = np.arange(len(left))
    while active.size:
        silent = left[active, np.newaxis] - rung - np.arange(block)
        real = silent > 0
        gaps = rng.standard_exponential(real.shape) / np.maximum(silent, 1)
        rings = clocks[active, np.newaxis] + np.cumsum(gaps, axis=1)
        clocks[active] = rings[:, -1]
        rings = np.log(rings) - log_weights[active, np.newaxis]
        times = np.concatenate([times, rings[real]])
        owners = np.concatenate([owners, np.repeat(active, real.sum(axis=1))])
        if len(times) >= size:
            first = np.argpartition(times, size - 1)[:size]
            times, owners = times[first], owners[first]
            latest = float(times.max())
        rung += block
        block *= 2
        active = active[(rings[:, -1] < latest) & (left[active] > rung)]
    return np.bincount(owners, minlength=len(left))
