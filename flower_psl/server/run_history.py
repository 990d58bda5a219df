"""What a run leaves to the one who started it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

StateDict = Mapping[str, Tensor]
Metrics = dict[str, int | float | list[int] | list[float]]


@dataclass
class RunHistory:
    """What a run leaves: the metrics of each round, and the model.

    Attributes
    ----------
    train, split_evaluation, central_evaluation : dict of int to dict
        Metrics by round.
    state_dict : mapping of str to Tensor
        The whole model under its original keys.
    """

    train: dict[int, Metrics] = field(default_factory=dict)
    split_evaluation: dict[int, Metrics] = field(default_factory=dict)
    central_evaluation: dict[int, Metrics] = field(default_factory=dict)
    state_dict: StateDict = field(default_factory=dict)
