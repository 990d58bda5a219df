"""Straggler sampling: slow clients are seated in a share of the steps only."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.cost_model import CostModel
from flower_psl.sampling.global_sampler import GlobalSampler
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.real_number import real_number
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.streams import Purpose, generator
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True, kw_only=True)
class StragglerSampler(Sampler):
    """Global batches of fixed size, with slow clients in a random share of the steps.

    Of the T full steps of a round, ceil(phi T) are chosen at random, and the examples of all
    slow clients take uniformly random seats in them. The others take the seats that are
    left, shuffled as in global sampling. Every example is used once a round and every step but
    the last has exactly B examples. With phi = 1 the schedule is that of `GlobalSampler`,
    bit for bit; below 1, batches with and without slow clients differ in what data they show,
    the more so the more the slow clients' data differ from the others'.

    Where the fixed seconds of slow clients l_slow exceed those of the others l_fast and
    dominate the steps, a round takes about phi + (1 - phi) l_fast / l_slow of the time that
    it takes with phi = 1.

    Exactly one of `cost` and `slow` says who is slow. This sampler departs from
    arXiv:2407.15738, whose versions 1 to 3 meet stragglers by `LatentDirichletSampler`.

    Parameters
    ----------
    batch_size : int
        The global batch size B, in examples.
    participation : float
        The share phi of the steps that slow clients take part in: above 0, at most 1, and
        not below their share of the data, for which the chosen steps must have seats.
    cost : CostModel, optional
        Slow are then the clients whose `seconds_per_participation` exceed `slow_factor`
        times the median of all clients with data.
    slow : Collection[int], optional
        The keys of the slow clients.
    slow_factor : float, default 2.0
        At least 1.
    seed : int, default 0
        From 0 to 2**64 - 1. A schedule is a function of (seed, round, numbers of examples).

    Raises
    ------
    ConfigError
        If an argument is invalid, or both or neither of `cost` and `slow` are given.
    """

    name: ClassVar[str] = "straggler"

    batch_size: int
    participation: float
    cost: CostModel | None = None
    slow: Collection[int] | None = None
    slow_factor: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if (self.cost is None) == (self.slow is None):
            raise ConfigError(
                f"cost is {self.cost} and slow is {self.slow}; exactly one of them says who is "
                "slow: give one, leave out the other"
            )
        checked: dict[str, object] = {
            "batch_size": whole_number("batch_size", self.batch_size, at_least=1),
            "participation": real_number(
                "participation", self.participation, above=0.0, at_most=1.0
            ),
            "slow_factor": real_number("slow_factor", self.slow_factor, at_least=1.0),
            "seed": whole_number("seed", self.seed, at_least=0, below=2**64),
        }
        if self.slow is not None:
            keys = (whole_number("slow", key, at_least=0, below=2**64) for key in self.slow)
            checked["slow"] = frozenset(keys)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def slow_clients(self, num_examples: Mapping[int, int]) -> frozenset[int]:
        """Return the keys of the slow clients, by the rule of this sampler.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to number of examples.

        Raises
        ------
        ConfigError
            If the cost model is not one of these clients, or `slow` names one that is none.
        """
        if self.cost is None:
            unknown = sorted(frozenset(self.slow or ()) - num_examples.keys())
            if unknown:
                raise ConfigError(
                    f"slow names the clients {unknown}, which the run does not have; its clients "
                    f"are {sorted(num_examples)}: name those of them that are slow"
                )
            return frozenset(self.slow or ())
        self.cost.check_clients(num_examples)
        fixed = {
            key: self.cost.clients[key].seconds_per_participation
            for key, count in num_examples.items()
            if count
        }
        limit = self.slow_factor * float(np.median(list(fixed.values())))
        return frozenset(key for key, seconds in fixed.items() if seconds > limit)

    def details(self, num_examples: Mapping[int, int]) -> dict[str, object]:
        """Return who is slow, the share of the steps, and the costs, if it has any."""
        costs = {} if self.cost is None else {"costs": self.cost.to_json()}
        slow = sorted(self.slow_clients(num_examples))
        return {"participation": self.participation, "slow_clients": slow, **costs}

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Draw the schedule of one round; see `Sampler.schedule`.

        Raises
        ------
        ConfigError
            Also if the slow clients' examples do not fit into their share of the steps.
        """
        server_round = whole_number("server_round", server_round, at_least=0)
        pool = Pool.of(num_examples)
        pool.check_batch_size(self.batch_size)
        slow_keys = self.slow_clients(num_examples)
        if self.participation == 1.0:
            return GlobalSampler(self.batch_size, self.seed).schedule(num_examples, server_round)
        slow = np.array([key in slow_keys for key in pool.keys])
        rng = generator(self.seed, Purpose.SCHEDULE, server_round)
        seats = self._seats_of_slow(pool, int(pool.counts[slow].sum()), rng)
        word = np.empty(pool.num_examples, dtype=pool.letters.dtype)
        for where, who in ((seats, slow), (~seats, ~slow)):
            word[where] = rng.permutation(np.repeat(pool.letters[who], pool.counts[who]))
        return BatchSchedule(pool, word, range(0, len(word) + self.batch_size, self.batch_size))

    def replan(
        self, left: Mapping[int, int], server_round: int, plan: int
    ) -> BatchSchedule | None:
        """Draw what is left of a round anew; see `Sampler.replan`.

        Where the slow clients' examples no longer fit into their share of the steps, it is as
        much higher as it must be.
        """
        total = sum(left.values())
        if not total:
            return None
        size = min(self.batch_size, total)
        slow = sum(left[key] for key in self.slow_clients(left))
        needed = min(-(-slow // size) / (total // size), 1.0)
        wider = replace(self, participation=max(self.participation, needed))
        return Sampler.replan(wider, left, server_round, plan)

    def _seats_of_slow(
        self, pool: Pool, num_slow: int, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Return which of the D seats of a round the examples of slow clients take."""
        num_full = pool.num_examples // self.batch_size
        # The small subtrahend keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
        num_chosen = max(1, math.ceil(self.participation * num_full - 1e-9))
        taken = np.zeros(num_chosen * self.batch_size, dtype=np.bool_)
        if num_slow > len(taken):
            raise ConfigError(
                f"participation is {self.participation}, but the slow clients have {num_slow} of "
                f"{pool.num_examples} examples; they must fit into {num_chosen} of {num_full} "
                f"full steps of {self.batch_size}, {len(taken)} seats: "
                f"{self._remedy(num_slow, pool)}"
            )
        taken[:num_slow] = True
        rng.shuffle(taken)
        seats = np.zeros(pool.num_examples, dtype=np.bool_)
        full = seats[: num_full * self.batch_size].reshape(num_full, self.batch_size)
        full[rng.choice(num_full, num_chosen, replace=False)] = taken.reshape(num_chosen, -1)
        return seats

    def _remedy(self, num_slow: int, pool: Pool) -> str:
        needed = -(-num_slow // self.batch_size) / (pool.num_examples // self.batch_size)
        if needed > 1.0:
            return "choose participation = 1"
        return f"choose participation >= {math.ceil(needed * 1e4) / 1e4}"
