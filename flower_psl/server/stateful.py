"""What a part of a run must offer to be saved with it."""

from typing import Protocol

from flower_psl.storage import State


class Stateful(Protocol):
    """A part of a run that changes while it goes on."""

    def state(self) -> State:
        """Return what it holds; tensors need not be copies."""

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned."""
