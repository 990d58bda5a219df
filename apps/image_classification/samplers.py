"""The samplers a run can choose from, by the names of the paper's methods."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flower_psl import (
    FixedLocalSampler,
    GlobalSampler,
    ProportionalLocalSampler,
    Sampler,
    SequentialSampler,
)

if TYPE_CHECKING:
    from .config import AppConfig


def _global(config: "AppConfig") -> Sampler:
    return GlobalSampler(
        batch_size=config.batch_size,
        seed=config.seed,
        drop_last=config.drop_last,
        min_client_batch=config.min_client_batch,
    )


def _fixed_local(config: "AppConfig") -> Sampler:
    if config.local_batch_size:
        return FixedLocalSampler(local_batch_size=config.local_batch_size)
    return FixedLocalSampler(batch_size=config.batch_size)


def _proportional_local(config: "AppConfig") -> Sampler:
    return ProportionalLocalSampler(batch_size=config.batch_size)


def _sequential(config: "AppConfig") -> Sampler:
    return SequentialSampler(batch_size=config.batch_size)


SAMPLERS: dict[str, Callable[["AppConfig"], Sampler]] = {
    "gpsl": _global,
    "fls": _fixed_local,
    "fpls": _proportional_local,
    "sl": _sequential,
}
"""Global sampling, fixed local, fixed proportional local, sequential split learning."""
