"""The samplers a run can choose from; the paper's methods have their names there."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flower_psl import (
    BalancedSampler,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    LatentDirichletSampler,
    ProportionalLocalSampler,
    Sampler,
    SequentialSampler,
    StragglerSampler,
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


def _balanced(config: "AppConfig") -> Sampler:
    return BalancedSampler(batch_size=config.batch_size, seed=config.seed)


def _straggler(config: "AppConfig") -> Sampler:
    path = config.client_costs
    read = CostModel.from_steps if path.endswith(".jsonl") else CostModel.from_file
    return StragglerSampler(
        batch_size=config.batch_size,
        participation=config.participation,
        cost=read(path),
        seed=config.seed,
    )


def _latent_dirichlet(config: "AppConfig") -> Sampler:
    return LatentDirichletSampler(
        batch_size=config.batch_size, concentration=config.concentration, seed=config.seed
    )


SAMPLERS: dict[str, Callable[["AppConfig"], Sampler]] = {
    "gpsl": _global,
    "fls": _fixed_local,
    "fpls": _proportional_local,
    "sl": _sequential,
    "balanced": _balanced,
    "straggler": _straggler,
    "latent-dirichlet": _latent_dirichlet,
}
"""Global sampling, fixed local, fixed proportional local, sequential split learning; then those
for devices of different speed."""
