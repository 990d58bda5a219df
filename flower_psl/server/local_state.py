"""What the server knows of the segments that clients train by themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_psl.storage import State
from flower_psl.wire import EncodedBatch, StepId


@dataclass
class LocalState:
    """What the server knows of the segments that clients train by themselves, by client key.

    Attributes
    ----------
    started : set of int
        Who has a segment of its own.
    weights : dict of int to float
        What its losses of the round were divided by, in sum: its examples, for a plain mean.
    last : dict of int to StepId
        The step of the round that it was asked for last.
    left : dict of int to tuple of StepId and EncodedBatch
        Gradients that have not reached their client yet, with their steps.
    forget : set of int
        Whose last step waits for a gradient that will not come.
    gone : set of int
        Who failed, and has not come back.
    """

    started: set[int] = field(default_factory=set)
    weights: dict[int, float] = field(default_factory=dict)
    last: dict[int, StepId] = field(default_factory=dict)
    left: dict[int, tuple[StepId, EncodedBatch]] = field(default_factory=dict)
    forget: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def asked(self, steps: Iterable[StepId], answered: Iterable[StepId]) -> None:
        """Note a request to train, and who answered: its gradient has reached it."""
        for step in steps:
            self.last[step.client_key] = step
            self.forget.add(step.client_key)
        for step in answered:
            self.left.pop(step.client_key, None)
            self.started.add(step.client_key)

    def keep(self, step: StepId, gradient: EncodedBatch, weight: float) -> None:
        """Note what a client has done in a step that was taken, and is to get."""
        key = step.client_key
        self.left[key] = (step, gradient)
        self.weights[key] = self.weights.get(key, 0.0) + weight
        self.forget.discard(key)

    def take_back(self, key: int, *, has_segment: bool) -> None:
        """Note that a client is there again, with its segment or without."""
        self.gone.discard(key)
        if not has_segment:
            self.started.discard(key)
            self.forget.discard(key)
            self.weights.pop(key, None)
            self.left.pop(key, None)

    def end_round(self, *, shared: bool) -> None:
        """Forget the round; and what clients have of their own, if it is shared now."""
        self.weights.clear()
        self.last.clear()
        if shared:
            self.started.clear()
            self.left.clear()
            self.forget.clear()

    def state(self) -> State:
        """Return all of it, in values that can be saved."""
        return {
            "started": sorted(self.started),
            "weights": self.weights,
            "last": {key: list(step) for key, step in self.last.items()},
            "left": {
                key: [list(step), gradient.values, dict(gradient.extras)]
                for key, (step, gradient) in self.left.items()
            },
            "forget": sorted(self.forget),
            "gone": sorted(self.gone),
        }

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned."""
        self.started, self.forget, self.gone = (
            {int(key) for key in state[name]} for name in ("started", "forget", "gone")
        )
        self.weights = {int(key): float(weight) for key, weight in state["weights"].items()}
        self.last = {int(key): _step_id(step) for key, step in state["last"].items()}
        self.left = {
            int(key): (_step_id(step), _gradient(values, extras))
            for key, (step, values, extras) in state["left"].items()
        }


def _step_id(values: Iterable[int]) -> StepId:
    return StepId(*(int(value) for value in values))


def _gradient(values: object, extras: Mapping[str, object]) -> EncodedBatch:
    tensors = {name: part for name, part in extras.items() if isinstance(part, Tensor)}
    if not isinstance(values, Tensor) or len(tensors) < len(extras):
        raise ValueError(f"a gradient is {values!r}, with {extras!r}")
    return EncodedBatch(values, tensors)
