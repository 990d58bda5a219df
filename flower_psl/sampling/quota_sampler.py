"""Quotas: a client gives a part of its data a round, and all of it over several rounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flower_psl.errors import ConfigError
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.real_number import real_number
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True)
class QuotaSampler(Sampler):
    """Let another sampler plan each round over a part of the data, which rotates.

    A client with quota q_k passes over its data in R_k = ceil(1 / q_k) rounds: each pass's
    permutation of its D_k examples is cut into R_k parts whose sizes differ by at most one, and
    each round uses the next part. So a client gives at most ceil(q_k D_k) examples a round, no
    example is used twice in a round, and each exactly once in each R_k rounds, counted from
    the first. With all quotas 1 this is the inner sampler.

    While every example is used once a round, no round is shorter than the slowest client needs
    for all its data. A quota for that client is the one way below. Its price: the objective
    becomes the loss with client k weighted by `client_weights` instead of D_k / D. Unless all
    quotas are alike, this is not the objective of centralized learning nor that of
    arXiv:2407.15738, which has no quotas.

    Parameters
    ----------
    sampler : Sampler
        Plans each round, over the examples that the quotas leave it.
    quota : float or Mapping[int, float]
        q_k, above 0 and at most 1: one for all clients, or by client key. Clients that are not
        named have 1. Quotas are rounded down to 1 / R_k.

    Raises
    ------
    ConfigError
        If the sampler is none or a quota is invalid.
    """

    sampler: Sampler
    quota: float | Mapping[int, float]

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.sampler, Sampler):
            raise ConfigError(
                f"sampler is {self.sampler!r}; a quota needs a sampler to plan with: pass one, "
                "such as GlobalSampler(batch_size=64)"
            )
        if isinstance(self.quota, Mapping):
            quota: float | Mapping[int, float] = {
                whole_number("client key", key, at_least=0, below=2**64): _checked(
                    f"quota of client {key}", value
                )
                for key, value in sorted(self.quota.items())
            }
        else:
            quota = _checked("quota", self.quota)
        object.__setattr__(self, "quota", quota)

    def __hash__(self) -> int:
        """Return a hash of the sampler and the quotas."""
        quota = tuple(self.quota.items()) if isinstance(self.quota, Mapping) else self.quota
        return hash((self.sampler, quota))

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner sampler's name, and that there is a quota."""
        return f"{self.sampler.name}, quota"

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Return the schedule of one round, whose `starts` say where the parts begin.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to the number of all its examples.
        server_round : int
            The round, at least 1.

        Returns
        -------
        BatchSchedule
            Of clients whose part is not empty: one with fewer examples than R_k has no part in
            some rounds.

        Raises
        ------
        ConfigError
            As the inner sampler, and if a quota is for a client that there is not.
        """
        server_round = whole_number("server_round", server_round, at_least=1)
        rounds = self._rounds_a_pass(num_examples)
        # Parts end at floor(r D_k / R_k) for all r, hence exactly at each end of a pass.
        starts, ends = (
            {key: passed * int(num_examples[key]) // rounds[key] for key in rounds}
            for passed in (server_round - 1, server_round)
        )
        parts = {key: ends[key] - starts[key] for key in rounds}
        try:
            schedule = self.sampler.schedule(parts, server_round)
        except ConfigError as error:
            raise ConfigError(
                f"round {server_round}, with the {sum(parts.values())} of "
                f"{sum(num_examples.values())} examples that the quotas leave: {error}. Or raise "
                "the quotas"
            ) from error
        return schedule.starting_at({key: starts[key] for key in schedule.client_keys})

    def replan(
        self, left: Mapping[int, int], server_round: int, plan: int
    ) -> BatchSchedule | None:
        """Let the inner sampler draw what is left of the parts; see `Sampler.replan`."""
        return self.sampler.replan(left, server_round, plan)

    def details(self, num_examples: Mapping[int, int]) -> dict[str, object]:
        """Return the inner sampler's details, and each client's weight in the objective."""
        weights = {str(key): weight for key, weight in self.client_weights(num_examples).items()}
        return {**self.sampler.details(num_examples), "client_weights": weights}

    def client_weights(self, num_examples: Mapping[int, int]) -> dict[int, float]:
        """Return each client's weight in the objective: its share of the examples used.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to the number of all its examples.

        Returns
        -------
        dict of int to float
            (D_k / R_k) / sum_j (D_j / R_j) by client key, for the clients with data: the mean
            over the rounds, provided each round uses all that the quotas leave. Without quotas
            the weights are D_k / D.

        Raises
        ------
        ConfigError
            If the numbers are invalid, or a quota is for a client that there is not.
        """
        rounds = self._rounds_a_pass(num_examples)
        pool = Pool.of(num_examples)
        counts = pool.counts.tolist()
        used = [count / rounds[key] for key, count in zip(pool.keys, counts, strict=True)]
        return {key: part / sum(used) for key, part in zip(pool.keys, used, strict=True)}

    def _rounds_a_pass(self, num_examples: Mapping[int, int]) -> dict[int, int]:
        """Return R_k by client key."""
        Pool.of(num_examples)
        if not isinstance(self.quota, Mapping):
            return dict.fromkeys(num_examples, _rounds_of(self.quota))
        unknown = sorted(self.quota.keys() - num_examples.keys())
        if unknown:
            raise ConfigError(
                f"quota names the clients {unknown}, which the run does not have; its clients are "
                f"{sorted(num_examples)}: name those of them that have a quota"
            )
        return {key: _rounds_of(self.quota.get(key, 1.0)) for key in num_examples}


def _checked(name: str, value: object) -> float:
    return real_number(name, value, above=0.0, at_most=1.0)


def _rounds_of(quota: float) -> int:
    # 1 / (1 / 49) is just above 49: the small subtrahend keeps it from becoming 50.
    return math.ceil(1 / quota - 1e-9)
