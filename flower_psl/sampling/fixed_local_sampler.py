"""Fixed local sampling (FLS): the same batch size for every client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from flower_psl.errors import ConfigError
from flower_psl.sampling.local_batches import parallel_schedule
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True, kw_only=True)
class FixedLocalSampler(Sampler):
    """FLS, a baseline of arXiv:2407.15738: every client gives the same batch to every step.

    A client whose data is used up drops out, after a last batch of what it has left; the
    round runs until no client has data. So the effective batch size falls with the number
    of clients left, and late steps see only the data of the largest clients.

    Exactly one of the two arguments must be given.

    Parameters
    ----------
    local_batch_size : int, optional
        The batch size of a client, in examples. The effective batch size then grows with
        the number of clients K.
    batch_size : int, optional
        The global batch size B that all clients share alike: each gives B / K, rounded half
        up and at least 1, where K counts the clients with data. The effective batch size is
        therefore B only up to rounding.

    Raises
    ------
    ConfigError
        If both or neither of the arguments are given, or one is invalid.
    """

    name: ClassVar[str] = "FLS"

    local_batch_size: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if (self.local_batch_size is None) == (self.batch_size is None):
            raise ConfigError(
                f"local_batch_size is {self.local_batch_size} and batch_size is "
                f"{self.batch_size}; exactly one of them sizes the batches: give one, leave "
                "out the other"
            )
        field = "batch_size" if self.local_batch_size is None else "local_batch_size"
        size = whole_number(field, getattr(self, field), at_least=1, below=2**32)
        object.__setattr__(self, field, size)

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Return the schedule, the same in every round; see `Sampler.schedule`."""
        whole_number("server_round", server_round, at_least=0)
        pool = Pool.of(num_examples)
        num_clients = len(pool.keys)
        if self.batch_size is None:
            size = cast(int, self.local_batch_size)
        else:
            pool.check_batch_size(self.batch_size)
            size = max(1, (2 * self.batch_size + num_clients) // (2 * num_clients))
        return parallel_schedule(pool, np.full(num_clients, size, dtype=np.int64))
