"""What a Flower strategy keeps from round to round, as state that can be saved."""

from typing import Any

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from flower_psl.storage import State


def strategy_state(strategy: Strategy) -> State:
    """Return a strategy's attributes, those of a strategy that it wraps among them.

    Its functions are left out: whoever makes the strategy again gives it the same.
    """
    return {name: _saved(value) for name, value in vars(strategy).items() if not callable(value)}


def load_strategy_state(strategy: Strategy, state: State) -> None:
    """Give a strategy the attributes that `strategy_state` returned."""
    for name, saved in state.items():
        [(kind, content)] = saved.items()
        if kind == "strategy":
            load_strategy_state(getattr(strategy, name), content)
        elif kind == "arrays":
            arrays = ArrayRecord({key: Array(array) for key, array in content.items()})
            setattr(strategy, name, arrays)
        else:
            setattr(strategy, name, content)


def _saved(value: object) -> dict[str, Any]:
    if isinstance(value, Strategy):
        return {"strategy": strategy_state(value)}
    if isinstance(value, ArrayRecord):
        return {"arrays": {name: array.numpy() for name, array in value.items()}}
    return {"value": value}
