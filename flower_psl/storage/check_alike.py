"""Saved values that are to take the place of others."""

import reprlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flower_psl.errors import CheckpointError


def check_alike(saved: Any, own: Any, path: str) -> None:
    """Refuse saved values that are not built as those whose place they take.

    Parameters
    ----------
    saved, own : object
        What was saved, and what is there: numbers, strings, tensors, and lists, tuples and
        dicts of such. Where nothing is there yet (None) anything may have been saved.
    path : str
        What they are, for messages.

    Raises
    ------
    CheckpointError
        If a key, a length or a kind differs.
    """
    if own is None or (_is_number(own) and _is_number(saved)):
        return
    if type(saved) is not type(own) or _size(saved) != _size(own):
        raise CheckpointError(
            f"the saved {path} is {reprlib.repr(saved)}, where {reprlib.repr(own)} is expected; "
            "it must be built alike. Build the same as when it was saved, and use a checkpoint "
            "that nobody has changed."
        )
    if isinstance(own, Mapping):
        for key, value in own.items():
            check_alike(saved[key], value, f"{path}/{key}")
    elif isinstance(own, (list, tuple)):
        for at, value in enumerate(own):
            check_alike(saved[at], value, f"{path}/{at}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(value: Any) -> object:
    """Return what must be the same of two values, beside their kind."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return set(value)
    return len(value) if isinstance(value, (list, tuple)) else None
