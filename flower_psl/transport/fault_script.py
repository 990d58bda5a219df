"""Which faults an experiment has, and when: the same for the same seed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from flower_psl.errors import ConfigError
from flower_psl.transport.corruptions import Corruption


class Fault(StrEnum):
    """What can happen to a node's request or its reply."""

    DROP = "drop"
    """The request is lost on its way: the node never sees it, and is late."""
    LOSE = "lose"
    """The node answers, and the reply is lost on its way: the node is late."""
    DELAY = "delay"
    """The request comes to the node when nobody waits any more: it is late, and answers it
    before whatever it is asked next."""
    DUPLICATE = "duplicate"
    """The request comes twice, and the reply to the second counts."""
    REORDER = "reorder"
    """The nodes of the exchange get their requests in another order."""
    CORRUPT = "corrupt"
    """The reply is changed on its way, see `Corruption`."""
    RAISE = "raise"
    """The node says that it failed, and has not touched the request."""
    KILL = "kill"
    """The node's process ends, before or after it answered, and another one takes its place
    later, which knows nothing."""


class Injection(NamedTuple):
    """A fault that happens.

    Attributes
    ----------
    call : int
        At which call of the transport, from 1.
    node : int
        To which node.
    fault : Fault
        What.
    corruption : Corruption or None
        How its reply was changed.
    """

    call: int
    node: int
    fault: Fault
    corruption: Corruption | None = None


@dataclass(frozen=True, kw_only=True)
class FaultScript:
    """Draws faults, each a function of the seed, the call and the node.

    Attributes
    ----------
    seed : int
        Of the draws.
    rate : float
        The probability that something happens to a node in an exchange.
    faults : tuple of Fault
        What may happen, each with the same probability.
    corruptions : tuple of Corruption
        How replies may be changed.
    longest_absence : int
        For how many calls of the transport, at most, a node that is late or was killed stays
        away: 1 means that it is back at the next one. Nobody sleeps for it.
    quiet_calls : int
        How many calls come first to which nothing happens.

    Raises
    ------
    ConfigError
        If a value breaks these rules.
    """

    seed: int
    rate: float
    faults: tuple[Fault, ...] = tuple(Fault)
    corruptions: tuple[Corruption, ...] = tuple(Corruption)
    longest_absence: int = 4
    quiet_calls: int = 0

    def __post_init__(self) -> None:
        """Refuse values that break the rules."""
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"rate is {self.rate!r}; a probability is from 0 to 1")
        for name, least in (("seed", 0), ("longest_absence", 1), ("quiet_calls", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it is {least} or more")
        for name in ("faults", "corruptions"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; name one or more, or leave it out")

    def draws(self, call: int, node: int) -> np.random.Generator:
        """Return what decides about a node in a call."""
        return np.random.default_rng([self.seed, call, node])

    def fault(self, call: int, draws: np.random.Generator) -> Fault | None:
        """Return what happens, if anything does."""
        if call <= self.quiet_calls or draws.random() >= self.rate:
            return None
        return self.faults[draws.integers(len(self.faults))]

    def corruption(self, draws: np.random.Generator) -> Corruption:
        """Return how a reply is changed."""
        return self.corruptions[draws.integers(len(self.corruptions))]

    def absence(self, draws: np.random.Generator) -> int:
        """Return for how many calls a node stays away."""
        return int(draws.integers(1, self.longest_absence + 1))
