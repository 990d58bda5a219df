"""What a run leaves to the one who started it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_psl.storage import State

_METRICS = ("train", "split_evaluation", "central_evaluation")

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

    def state(self) -> State:
        """Return the metrics of the rounds so far."""
        return {name: getattr(self, name) for name in _METRICS}

    def load_state(self, state: State) -> None:
        """Go on with the metrics that `state` returned.

        Raises
        ------
        ValueError
            If one is no number, nor a list of numbers.
        """
        for name in _METRICS:
            for server_round, metrics in state[name].items():
                for metric, value in metrics.items():
                    parts = value if isinstance(value, list) else [value]
                    if not all(isinstance(part, (int, float)) for part in parts):
                        raise ValueError(f"{metric} of round {server_round} is {value!r}")
            setattr(self, name, dict(state[name]))
