"""What a Flower strategy keeps from round to round, as state that can be saved."""

from typing import Any

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from flower_psl.errors import CheckpointError
from flower_psl.server.checkpoints.kind_of import PLAIN, plain_kind
from flower_psl.server.client_strategy_checks import layers_of
from flower_psl.storage import State

# Settings by which nothing that is computed changes: a resumed run may have others.
_FREE = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes", "fraction_evaluate")


def strategy_kind(strategy: Strategy | None) -> str:
    """Return the name of a strategy with its plain settings, and of those that it wraps."""
    if strategy is None:
        return "none"
    return " of ".join(plain_kind(each, leave_out=_FREE) for each in layers_of(strategy))


class StrategyState:
    """Saves what a strategy, and one that it wraps, keeps from round to round.

    Its functions are left out: whoever makes the strategy again gives it the same. So are
    bounds on numbers of nodes, which may be lowered when a run is resumed.

    Parameters
    ----------
    strategy : Strategy
        The strategy, as it is made.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        # Only these can be given back to a strategy that is made again.
        self._names = [set(vars(layer)) for layer in layers_of(strategy)]

    def state(self) -> State:
        """Return the strategy's attributes.

        Raises
        ------
        CheckpointError
            If it has attributes that it had not when it was made.
        """
        for layer, names in zip(layers_of(self._strategy), self._names, strict=True):
            if new := sorted(set(vars(layer)) - names):
                raise CheckpointError(
                    f"client_strategy {type(layer).__name__} has the attributes {new}, and had "
                    "not when it was made; one that is made again could not get them back. Set "
                    "them in its __init__, if only to None."
                )
        return _saved_attributes(self._strategy)

    def load_state(self, state: State) -> None:
        """Give the strategy the attributes that `state` returned.

        Raises
        ------
        ValueError
            If they are not those of such a strategy.
        """
        _check_attributes(self._strategy, state)
        _load_attributes(self._strategy, state)


def _is_kept(name: str, value: object) -> bool:
    return not callable(value) and name not in _FREE


def _saved_attributes(strategy: Strategy) -> State:
    return {name: _saved(value) for name, value in vars(strategy).items() if _is_kept(name, value)}


def _saved(value: object) -> dict[str, Any]:
    if isinstance(value, Strategy):
        return {"strategy": _saved_attributes(value)}
    if isinstance(value, ArrayRecord):
        return {"arrays": {name: array.numpy() for name, array in value.items()}}
    return {"value": value}


def _check_attributes(strategy: Strategy, state: State) -> None:
    own = {name: value for name, value in vars(strategy).items() if _is_kept(name, value)}
    if different := sorted(set(own) ^ set(state)):
        raise ValueError(
            f"{type(strategy).__name__} and what was saved of it differ in {different}"
        )
    for name, saved in state.items():
        [(kind, content)] = saved.items()
        is_inner = isinstance(own[name], Strategy)
        if kind not in ("strategy", "arrays", "value") or (kind == "strategy") != is_inner:
            raise ValueError(f"{name} is a {kind!r} where {own[name]!r} is")
        if is_inner:
            _check_attributes(own[name], content)
        elif isinstance(own[name], PLAIN) and _sort(content) is not _sort(own[name]):
            raise ValueError(f"{name} is {content!r} where {own[name]!r} is")


def _sort(value: object) -> type:
    """Return what a value is; a number may be whole or not."""
    return float if type(value) is int else type(value)


def _load_attributes(strategy: Strategy, state: State) -> None:
    for name, saved in state.items():
        [(kind, content)] = saved.items()
        if kind == "strategy":
            _load_attributes(getattr(strategy, name), content)
        elif kind == "arrays":
            arrays = ArrayRecord({key: Array(array) for key, array in content.items()})
            setattr(strategy, name, arrays)
        else:
            setattr(strategy, name, content)
