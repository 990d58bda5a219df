"""How many examples each client contributes to each step of a round."""

from flower_psl.sampling.fixed_local_sampler import FixedLocalSampler
from flower_psl.sampling.global_sampler import GlobalSampler
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.proportional_local_sampler import ProportionalLocalSampler
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.sequential_sampler import SequentialSampler
from flower_psl.sampling.streams import Purpose, derive_seed, generator

__all__ = [
    "BatchSchedule",
    "FixedLocalSampler",
    "GlobalSampler",
    "Pool",
    "ProportionalLocalSampler",
    "Purpose",
    "Sampler",
    "SequentialSampler",
    "derive_seed",
    "generator",
]
