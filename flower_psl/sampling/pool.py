"""The clients' data, pooled: who has how many examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True, eq=False)
class Pool:
    """The clients that have data, in ascending order of their keys.

    Build it with `Pool.of`, which checks it.

    Attributes
    ----------
    keys : tuple of int
        The keys of the K clients with data. A client's place here is its *letter*.
    counts : NDArray[int64], shape (K,)
        Their numbers of examples D_k, all above 0.
    """

    keys: tuple[int, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, num_examples: Mapping[int, int]) -> "Pool":
        """Check the clients' numbers of examples and pool them.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key (0 to 2**64 - 1) to number of examples (0 to 2**32 - 1), in any
            order. Clients with 0 examples take no part.

        Returns
        -------
        Pool
            The clients that have data.

        Raises
        ------
        ConfigError
            If a key or number is not whole or out of range, or if nobody has data.
        """
        # 2**32 examples a client keep every sum of examples within int64.
        counts = {
            whole_number("client key", key, at_least=0, below=2**64): whole_number(
                f"client {key}: the number of examples", count, at_least=0, below=2**32
            )
            for key, count in num_examples.items()
        }
        keys = tuple(sorted(key for key, count in counts.items() if count))
        if not keys:
            raise ConfigError(
                f"none of the {len(counts)} clients has an example; a round needs at least "
                "one: give at least one client data"
            )
        return cls(keys, np.array([counts[key] for key in keys], dtype=np.int64))

    @cached_property
    def num_examples(self) -> int:
        """D, the number of examples of all clients."""
        return int(self.counts.sum())

    @property
    def letters(self) -> NDArray[np.unsignedinteger]:
        """The letters 0, ..., K - 1, shape (K,), in the smallest dtype that holds them."""
        return np.arange(len(self.keys), dtype=np.min_scalar_type(len(self.keys) - 1))

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a global batch that the pooled data cannot fill.

        Parameters
        ----------
        batch_size : int
            The global batch size B, in examples.

        Raises
        ------
        ConfigError
            If B is above D.
        """
        if batch_size > self.num_examples:
            raise ConfigError(
                f"batch_size is {batch_size}, but all clients together have "
                f"{self.num_examples} examples; a global batch cannot exceed them: choose "
                f"batch_size <= {self.num_examples} or give the clients more data"
            )
