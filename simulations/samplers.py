"""The samplers that experiments compare, by the names of the command line.

A name can carry a number: ``straggler:0.6`` seats the slow clients in 60 % of the steps.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flower_psl import (
    BalancedSampler,
    ConfigError,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    LatentDirichletSampler,
    ProportionalLocalSampler,
    QuotaSampler,
    Sampler,
    SequentialSampler,
    StragglerSampler,
)

_SLOW_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a sampler is made of; `number` is what stands behind the colon."""

    batch_size: int
    seed: int
    slow: Collection[int]
    number: float


_SAMPLERS: dict[str, Callable[[_Request], Sampler]] = {
    "gpsl": lambda asked: GlobalSampler(asked.batch_size, seed=asked.seed),
    "fpls": lambda asked: ProportionalLocalSampler(asked.batch_size),
    "fls": lambda asked: FixedLocalSampler(batch_size=asked.batch_size),
    "sl": lambda asked: SequentialSampler(asked.batch_size),
    "balanced": lambda asked: BalancedSampler(asked.batch_size, asked.seed),
    "straggler": lambda asked: StragglerSampler(
        batch_size=asked.batch_size,
        participation=asked.number,
        slow=asked.slow,
        seed=asked.seed,
    ),
    "latent-dirichlet": lambda asked: LatentDirichletSampler(
        batch_size=asked.batch_size, concentration=asked.number, seed=asked.seed
    ),
    "quota": lambda asked: QuotaSampler(
        GlobalSampler(asked.batch_size, asked.seed), dict.fromkeys(asked.slow, asked.number)
    ),
}
_NUMBERS = {
    "straggler": "the share of the steps that slow clients take part in",
    "latent-dirichlet": "the concentration",
    "quota": "the share of their data that slow clients use in a round",
}

METHODS = ", ".join(name + (":NUMBER" if name in _NUMBERS else "") for name in _SAMPLERS)
"""All there are, for help texts."""


def build_sampler(
    method: str, *, batch_size: int, seed: int, slow: Collection[int] = ()
) -> Sampler:
    """Build a sampler.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    batch_size : int
        The global batch size B.
    seed : int
        Of its draws.
    slow : Collection[int]
        Keys of the clients that "straggler" and "quota" spare.

    Raises
    ------
    ConfigError
        If there is no such method, its number is missing, one too many or no number, or the
        sampler refuses an argument.
    """
    name, colon, text = method.partition(":")
    if name not in _SAMPLERS:
        raise ConfigError(f"method {method!r} does not exist; choose from {METHODS}")
    if bool(colon) != (name in _NUMBERS):
        rule = f"takes a number, {_NUMBERS[name]}" if name in _NUMBERS else "takes no number"
        raise ConfigError(f"method {method!r}: {name!r} {rule}; choose from {METHODS}")
    try:
        number = float(text) if colon else math.nan
    except ValueError as error:
        raise ConfigError(
            f"method {method!r}: {text!r} is no number; give {_NUMBERS[name]}"
        ) from error
    asked = _Request(batch_size=batch_size, seed=seed, slow=slow, number=number)
    return _SAMPLERS[name](asked)


def check_methods(methods: Collection[str], batch_size: int) -> None:
    """Build a sampler of each method, so that a wrong name or number is found early.

    Raises
    ------
    ConfigError
        As `build_sampler`, or if there are none or one is named twice.
    """
    if len(set(methods)) < max(1, len(methods)):
        raise ConfigError(f"methods is {tuple(methods)}; name one or more, each once")
    for method in methods:
        build_sampler(method, batch_size=batch_size, seed=0)


def every_fifth(num_clients: int) -> frozenset[int]:
    """Return the clients that are slow where there is no cost model: 4, 9, 14, ..."""
    return frozenset(range(4, num_clients, 5))


def slow_clients(cost: CostModel, num_examples: Mapping[int, int]) -> frozenset[int]:
    """Return the clients that need more than twice the median time for an equal part.

    Parameters
    ----------
    cost : CostModel
        What a step takes each client.
    num_examples : Mapping[int, int]
        Client key to its number of examples.

    Raises
    ------
    ConfigError
        If the cost model is not one of these clients.
    """
    cost.check_clients(num_examples)
    seconds = {key: cost.clients[key].seconds(1) for key, count in num_examples.items() if count}
    limit = _SLOW_FACTOR * float(np.median(list(seconds.values())))
    return frozenset(key for key, needed in seconds.items() if needed > limit)
