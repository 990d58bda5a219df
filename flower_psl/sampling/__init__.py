"""How many examples each client contributes to each step of a round."""

from flower_psl.sampling.balanced_sampler import BalancedSampler
from flower_psl.sampling.batch_law import BatchLaw
from flower_psl.sampling.cost_model import ClientCost, CostModel
from flower_psl.sampling.deviation import (
    label_deviations,
    largest_class_deviation,
    total_variation,
)
from flower_psl.sampling.fixed_local_sampler import FixedLocalSampler
from flower_psl.sampling.global_sampler import GlobalSampler
from flower_psl.sampling.latent_dirichlet_sampler import LatentDirichletSampler
from flower_psl.sampling.pool import Pool
from flower_psl.sampling.proportional_local_sampler import ProportionalLocalSampler
from flower_psl.sampling.quota_sampler import QuotaSampler
from flower_psl.sampling.round_seconds import round_seconds
from flower_psl.sampling.sampler import Sampler
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.sequential_sampler import SequentialSampler
from flower_psl.sampling.serfling_bound import DeviationEvent, HoeffdingBound, SerflingBound
from flower_psl.sampling.straggler_sampler import StragglerSampler
from flower_psl.sampling.streams import Purpose, derive_seed, generator

__all__ = [
    "BalancedSampler",
    "BatchLaw",
    "BatchSchedule",
    "ClientCost",
    "CostModel",
    "DeviationEvent",
    "FixedLocalSampler",
    "GlobalSampler",
    "HoeffdingBound",
    "LatentDirichletSampler",
    "Pool",
    "ProportionalLocalSampler",
    "Purpose",
    "QuotaSampler",
    "Sampler",
    "SequentialSampler",
    "SerflingBound",
    "StragglerSampler",
    "derive_seed",
    "generator",
    "label_deviations",
    "largest_class_deviation",
    "round_seconds",
    "total_variation",
]
