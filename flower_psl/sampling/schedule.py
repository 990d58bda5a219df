"""The batch-size schedule of one round."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.schedule_checks import (
    check_bounds,
    check_integers,
    check_letters,
    check_sizes,
    check_totals,
)
from flower_psl.sampling.whole_number import whole_number

_SHOWN_STEPS = 10
_SHOWN_CLIENTS = 6


class BatchSchedule:
    """For each step of a round: the contributing clients and how many examples each gives.

    `schedule[t]` and iteration yield a step as a `dict` of client key to batch size, in
    ascending order of the keys, without the clients that give nothing. Two schedules are
    equal if their steps and `starts` are. Printing a schedule shows a table of its first steps.

    The schedule is stored as one word: step t consists of the letters
    `letters[bounds[t]:bounds[t + 1]]`, a letter standing for a client and for one example
    of its data (or for `sizes[i]` examples). The arrays are kept, not copied.

    Parameters
    ----------
    pool : Pool
        The clients and the examples each has.
    letters : NDArray[integer], shape (N,)
        Places in `pool.keys`, 0 to K - 1. Kept in the smallest unsigned dtype.
    bounds : Sequence[int], length T + 1
        Where the steps begin and end: strictly ascending from 0, the last one at N. It may
        lie beyond N, as slicing cuts it off: so `range(0, N + B, B)` describes uniform
        steps of B letters, with a shorter last one if B does not divide N.
    sizes : NDArray[integer], shape (N,), optional
        Examples of each letter, at least 1. One example each by default.

    Raises
    ------
    ConfigError
        If an array is not one of integers, the bounds do not cover the letters, a step is
        empty, a letter is no client, a size is below 1, or a client gives more examples than
        it has.
    """

    __hash__ = None  # type: ignore[assignment]  # equality compares steps, at some cost

    def __init__(
        self,
        pool: Pool,
        letters: NDArray[np.integer[Any]],
        bounds: Sequence[int],
        sizes: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        check_integers("letters", letters)
        check_bounds(bounds, len(letters))
        check_letters(letters, pool)
        if sizes is not None:
            check_integers("sizes", sizes)
            check_sizes(sizes, letters, pool)
        self._pool = pool
        self._letters = letters.astype(pool.letters.dtype, copy=False)
        self._bounds = bounds
        self._sizes = sizes
        self._starts: dict[int, int] | None = None
        self._totals = np.zeros(len(pool.keys), dtype=np.int64)
        # Unlike bincount, add.at makes no int64 copy of the whole word.
        np.add.at(self._totals, self._letters, 1 if sizes is None else sizes)
        check_totals(self._totals, pool)

    @classmethod
    def from_steps(
        cls, steps: Sequence[Mapping[int, int]], num_examples: Mapping[int, int]
    ) -> "BatchSchedule":
        """Build a schedule from steps written out as mappings.

        Parameters
        ----------
        steps : Sequence[Mapping[int, int]]
            For each step, client key to batch size; sizes of 0 are left out.
        num_examples : Mapping[int, int]
            Client key to number of examples, the limit of what a client gives in a round.

        Returns
        -------
        BatchSchedule
            The same steps, checked.

        Raises
        ------
        ConfigError
            If a step is empty, a size is no whole number or negative, or a client gives
            more examples than it has.
        """
        pool = Pool.of(num_examples)
        letter_of = {key: letter for letter, key in enumerate(pool.keys)}
        letters: list[int] = []
        sizes: list[int] = []
        bounds = [0]
        for number, step in enumerate(steps):
            for key, value in step.items():
                size = whole_number(f"step {number}: the batch of client {key}", value, at_least=0)
                limit = int(pool.counts[letter_of[key]]) if key in letter_of else 0
                if size > limit:
                    raise ConfigError(
                        f"step {number}: client {key} gives {size} examples but has {limit}; no "
                        "client can give more than it has: lower the batch size of the client"
                    )
                if size:
                    letters.append(letter_of[key])
                    sizes.append(size)
            bounds.append(len(letters))
        return cls(
            pool, np.array(letters, dtype=np.int64), bounds, np.array(sizes, dtype=np.int64)
        )

    def starting_at(self, starts: Mapping[int, int]) -> "BatchSchedule":
        """Return the same steps, with the round's place in each client's data.

        Parameters
        ----------
        starts : Mapping[int, int]
            For each of `client_keys`, what `starts` shall say, at least 0.

        Returns
        -------
        BatchSchedule
            Shares the word of this one.

        Raises
        ------
        ConfigError
            If the keys are not `client_keys`, or a place is no whole number or negative.
        """
        if starts.keys() != set(self.client_keys):
            raise ConfigError(
                f"starts are given for the clients {sorted(starts)}; the clients of the schedule "
                f"are {list(self.client_keys)}: give one for each of them and no other"
            )
        placed = copy(self)
        placed._starts = {
            key: whole_number(f"client {key}: the start", starts[key], at_least=0)
            for key in self.client_keys
        }
        return placed

    @property
    def starts(self) -> dict[int, int] | None:
        """Client key to where the round begins in the client's endless sequence of passes.

        Position s is place s % D_k of the permutation of pass s // D_k, where D_k counts all
        data of the client. None, unless `starting_at` said otherwise, means that each round
        is a pass: (server_round - 1) D_k.
        """
        return self._starts

    @property
    def client_keys(self) -> tuple[int, ...]:
        """Keys of all clients that have data, ascending."""
        return self._pool.keys

    @property
    def available(self) -> dict[int, int]:
        """Client key to the number of examples that the schedule was drawn over."""
        return dict(zip(self._pool.keys, self._pool.counts.tolist(), strict=True))

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return len(self._bounds) - 1

    @property
    def num_examples(self) -> int:
        """The number of examples that all clients give in all steps."""
        return int(self._totals.sum())

    @property
    def totals(self) -> dict[int, int]:
        """Client key to the number of examples it gives in the round, which may be 0."""
        return dict(zip(self._pool.keys, self._totals.tolist(), strict=True))

    @property
    def effective_batch_sizes(self) -> NDArray[np.int64]:
        """Examples that take part in each step, int64, shape (T,)."""
        bounds = np.fromiter(self._bounds, dtype=np.int64, count=len(self._bounds))
        if self._sizes is None:
            return np.diff(np.minimum(bounds, len(self._letters)))
        return np.add.reduceat(self._sizes, bounds[:-1], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.num_steps

    def __getitem__(self, step: int) -> dict[int, int]:
        """Return a step as client key to batch size; negative steps count from the end."""
        if not -self.num_steps <= step < self.num_steps:
            raise IndexError(f"step {step} of a schedule of {self.num_steps} steps")
        start = step % self.num_steps
        part = slice(self._bounds[start], self._bounds[start + 1])
        batch: Counter[int] = Counter()
        letters = self._letters[part].tolist()
        if self._sizes is None:
            batch.update(letters)
        else:
            for letter, size in zip(letters, self._sizes[part].tolist(), strict=True):
                batch[letter] += size
        keys = self._pool.keys
        return {keys[letter]: batch[letter] for letter in sorted(batch)}

    def __iter__(self) -> Iterator[dict[int, int]]:
        """Yield the steps in order."""
        return (self[step] for step in range(self.num_steps))

    def __eq__(self, other: object) -> bool:
        """Tell whether `other` is a schedule with the same steps and starts."""
        if not isinstance(other, BatchSchedule):
            return NotImplemented
        same = len(self) == len(other) and self.starts == other.starts
        return same and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        """Return the counts of steps, clients and examples in one line."""
        return (
            f"BatchSchedule(num_steps={self.num_steps}, num_clients={len(self.client_keys)}, "
            f"num_examples={self.num_examples})"
        )

    def __str__(self) -> str:
        """Return a table of the first steps."""
        lines = [
            f"{self.num_steps} steps, {len(self.client_keys)} clients, "
            f"{self.num_examples} examples",
            "step  examples  clients  client: batch size",
        ]
        for number, batch in enumerate(islice(self, _SHOWN_STEPS)):
            shown = [f"{key}: {size}" for key, size in islice(batch.items(), _SHOWN_CLIENTS)]
            if len(batch) > _SHOWN_CLIENTS:
                shown.append("...")
            examples = sum(batch.values())
            lines.append(f"{number:4}  {examples:8}  {len(batch):7}  {', '.join(shown)}")
        if self.num_steps > _SHOWN_STEPS:
            lines.append(" ...")
        return "\n".join(lines)
