"""A run's ledger, as a part of it that is saved."""

from collections.abc import Collection
from dataclasses import asdict, fields

from flower_psl.server.ledger import Ledger
from flower_psl.storage import State

# Those that have an entry for every client, and those whose entries are no counts.
_FULL = ("pool", "starts", "shares", "used")
_OTHERS: dict[str, type] = {"out": str, "failed": str, "failures": dict}


class LedgerState:
    """Saves a ledger, and brings it back in place.

    Parameters
    ----------
    ledger : Ledger
        The ledger.
    keys : collection of int
        The clients of the run.
    """

    def __init__(self, ledger: Ledger, keys: Collection[int]) -> None:
        self._ledger = ledger
        self._keys = set(keys)

    def state(self) -> State:
        """Return all of the ledger."""
        return asdict(self._ledger)

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned.

        Raises
        ------
        ValueError
            If an entry is not what a ledger of these clients has.
        """
        for entry in fields(Ledger):
            value, own = state[entry.name], getattr(self._ledger, entry.name)
            if type(value) is not type(own) or not self._fits(entry.name, value):
                raise ValueError(f"{entry.name} is {value!r}, with the clients {self._keys}")
        for key, used in state["used"].items():
            if used > state["shares"][key]:
                raise ValueError(f"client {key} has used {used} of {state['shares'][key]}")
        for entry in fields(Ledger):
            setattr(self._ledger, entry.name, state[entry.name])

    def _fits(self, name: str, value: object) -> bool:
        """Tell whether an entry is a count, or a mapping by client key."""
        if isinstance(value, int):
            return value >= 0
        if not isinstance(value, dict):
            return True
        all_keys = value.keys() == self._keys if name in _FULL else value.keys() <= self._keys
        return all_keys and all(_is_count(part, _OTHERS.get(name, int)) for part in value.values())


def _is_count(value: object, kind: type) -> bool:
    return type(value) is kind and not (isinstance(value, int) and value < 0)
