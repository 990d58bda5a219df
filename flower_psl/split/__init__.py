"""One model, cut in two: the cut, both sides' passes, checks and parity."""

from flower_psl.split.allocator import keep_freed_memory
from flower_psl.split.batch_norm import (
    batch_norm_layers,
    check_moments,
    update_running_statistics,
)
from flower_psl.split.check import SplitReport, check_split
from flower_psl.split.client_pass import (
    ClientPass,
    Inputs,
    load_tensors,
    trained_tensors,
)
from flower_psl.split.cut import cut
from flower_psl.split.example_wise import check_example_wise
from flower_psl.split.group_norm import to_group_norm
from flower_psl.split.module_index import ModuleIndex
from flower_psl.split.part_passes import PartPasses
from flower_psl.split.randomness import seeded
from flower_psl.split.server_pass import LossFn, ServerPass, check_loss_fn
from flower_psl.split.split_model import SplitModel

__all__ = [
    "ClientPass",
    "Inputs",
    "LossFn",
    "ModuleIndex",
    "PartPasses",
    "ServerPass",
    "SplitModel",
    "SplitReport",
    "batch_norm_layers",
    "check_example_wise",
    "check_loss_fn",
    "check_moments",
    "check_split",
    "cut",
    "keep_freed_memory",
    "load_tensors",
    "seeded",
    "to_group_norm",
    "trained_tensors",
    "update_running_statistics",
]
