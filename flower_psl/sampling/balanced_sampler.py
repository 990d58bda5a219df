"""Balanced sampling: every client gives every step its share, rounded."""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flower_psl.sampling.pool import Pool
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.streams import Purpose, generator
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True)
class BalancedSampler(Sampler):
    r"""Global batches of fixed size, in each of which b_k is B D_k / D, rounded up or down.

    Global sampling lets b_k vary by chance, and a step waits for the client that chance gave
    the most. Here every step of B examples has B of them exactly, every example is used once a
    round, E[b_k] = B D_k / D as in global sampling, and b_k is the whole number below or above
    that, in every step. (A short last step of r examples has r D_k / D, rounded alike.) So a
    round takes less time where computing dominates. Where fixed seconds of a few clients
    dominate that are slow and have little data, it can take more: sharing out evenly, they are
    spread over more steps; see `StragglerSampler`.

    Notes
    -----
    With D = T B + r, the last step is drawn by systematic sampling in random order of the
    clients. Of the rest, client k gives floor(B D_k / D) to each of the T full steps, which
    leaves it less than, or exactly, T examples. All that is left is dealt like cards, client
    after client in random order, one a step, in passes over all steps, each pass in a random
    order of its own. A client's cards lie in at most two passes, and the second begins with
    steps that the client has not been in: no step gets two.

    This departs from arXiv:2407.15738: which examples a client gives is drawn uniformly, but
    how many is nearly fixed, so that a batch is no uniform draw from the pooled data.

    Parameters
    ----------
    batch_size : int
        The global batch size B, in examples.
    seed : int, default 0
        From 0 to 2**64 - 1. A schedule is a function of (seed, round, numbers of examples).

    Raises
    ------
    ConfigError
        If an argument is invalid.
    """

    name: ClassVar[str] = "balanced"

    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        size = whole_number("batch_size", self.batch_size, at_least=1)
        seed = whole_number("seed", self.seed, at_least=0, below=2**64)
        object.__setattr__(self, "batch_size", size)
        object.__setattr__(self, "seed", seed)

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Draw the schedule of one round; see `Sampler.schedule`."""
        server_round = whole_number("server_round", server_round, at_least=0)
        pool = Pool.of(num_examples)
        pool.check_batch_size(self.batch_size)
        rng = generator(self.seed, Purpose.SCHEDULE, server_round)
        num_steps, rest = divmod(pool.num_examples, self.batch_size)
        last = _share_out(pool, rest, rng)
        floors = _times(pool.counts, self.batch_size, pool.num_examples)
        cards = pool.counts - last - num_steps * floors

        everywhere = np.flatnonzero(floors)
        width = len(everywhere) + int(cards.sum()) // num_steps
        in_last = np.flatnonzero(last)
        full = num_steps * width
        letters = np.empty(full + len(in_last), dtype=pool.letters.dtype)
        sizes = np.ones(len(letters), dtype=np.min_scalar_type(max(floors.max(), last.max())))
        letters_of, sizes_of = (word[:full].reshape(num_steps, width) for word in (letters, sizes))
        letters_of[:, : len(everywhere)] = everywhere
        passes = _deal(cards, pool.letters, num_steps, rng)
        for column, (steps, hand) in enumerate(passes, len(everywhere)):
            letters_of[steps, column] = hand
        sizes_of[:, : len(everywhere)] = floors[everywhere]
        letters[full:], sizes[full:] = in_last, last[in_last]
        bounds = array("q", range(0, full + 1, width))
        if rest:
            bounds.append(len(letters))
        return BatchSchedule(pool, letters, bounds, sizes if sizes.max() > 1 else None)


def _times(counts: NDArray[np.int64], factor: int, divisor: int) -> NDArray[np.int64]:
    """Return floor(counts * factor / divisor), whatever the size of the product."""
    return np.array([count * factor // divisor for count in counts.tolist()], dtype=np.int64)


def _share_out(pool: Pool, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `size` examples so that each client gives its share of them, rounded up or down."""
    total = pool.num_examples
    order = rng.permutation(len(pool.keys))
    offset = int(rng.integers(total))
    marks = [(size * count + offset) // total for count in np.cumsum(pool.counts[order]).tolist()]
    shares = np.empty(len(order), dtype=np.int64)
    shares[order] = np.diff(marks, prepend=0)
    return shares


def _deal(
    cards: NDArray[np.int64],
    letters: NDArray[np.unsignedinteger[Any]],
    num_steps: int,
    rng: np.random.Generator,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.unsignedinteger[Any]]]]:
    """Deal each client's cards, at most one a step: yield a pass's order of steps and letters."""
    order = rng.permutation(len(letters))
    hands = np.repeat(letters[order], cards[order]).reshape(-1, num_steps)
    steps = rng.permutation(num_steps)
    for number, hand in enumerate(hands):
        if number:
            before = steps[hands[number - 1] == hand[0]]
            again = int((hand == hand[0]).sum())
            steps = _begin_elsewhere(rng.permutation(num_steps), before, again)
        yield steps, hand


def _begin_elsewhere(
    steps: NDArray[np.int64], before: NDArray[np.int64], again: int
) -> NDArray[np.int64]:
    """Move up the first `again` of the steps that are not in `before`."""
    taken = np.zeros(len(steps), dtype=np.bool_)
    taken[before] = True
    first = steps[~taken[steps]][:again]
    taken[:] = False
    taken[first] = True
    return np.concatenate([first, steps[~taken[steps]]])
