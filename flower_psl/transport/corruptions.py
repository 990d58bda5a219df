"""Ways in which a reply can be wrong."""

from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from flower_psl.wire import StepReply, parts


class Corruption(StrEnum):
    """What is changed in a reply: its id, or one of its tensors, drawn at random.

    A tensor that cannot be changed so, for example labels that cannot be infinite, is not
    drawn; a reply without any that can has its id changed.
    """

    NAN = "nan"
    """A value becomes NaN."""
    INFINITE = "infinite"
    """A value becomes infinite."""
    HUGE = "huge"
    """All values are multiplied by 1e12."""
    SHAPE = "shape"
    """The tensor has one row less."""
    DTYPE = "dtype"
    """The tensor becomes one of bytes."""
    MISSING = "missing"
    """The tensor is not there."""
    LABELS = "labels"
    """Labels become the number of a class that there is not."""
    STEP = "step"
    """The reply is to the step before."""
    SIGN = "sign"
    """All values change their sign: nothing about the reply shows that it is wrong."""


_OF_FLOATS = (Corruption.NAN, Corruption.INFINITE, Corruption.HUGE, Corruption.SIGN)
_NO_CLASS = 1_000_000


def corrupted(reply: StepReply, corruption: Corruption, draws: np.random.Generator) -> StepReply:
    """Return a reply that is wrong in a given way.

    Raises
    ------
    ProtocolError
        If what becomes of it is no reply.
    """
    tensors = parts.reply_tensors(reply)
    names = [name for name, tensor in tensors.items() if _fits(name, tensor, corruption)]
    if not names:
        return replace(reply, id=reply.id._replace(step=max(reply.id.step - 1, 0)))
    name = names[draws.integers(len(names))]
    changed = _changed(tensors.pop(name), corruption, draws)
    if changed is not None:
        tensors[name] = changed
    wrong = parts.reply_of(parts.reply_config(reply), tensors)
    return replace(wrong, exchange_s=reply.exchange_s)


def _fits(name: str, tensor: Tensor, corruption: Corruption) -> bool:
    """Tell whether a tensor can be changed in a given way."""
    if corruption is Corruption.STEP or not tensor.numel():
        return False
    if corruption is Corruption.LABELS:
        return name == "labels" and not tensor.is_floating_point()
    return tensor.is_floating_point() or corruption not in _OF_FLOATS


def _changed(tensor: Tensor, corruption: Corruption, draws: np.random.Generator) -> Tensor | None:
    """Return the changed tensor, or None if it is to go."""
    match corruption:
        case Corruption.NAN | Corruption.INFINITE:
            changed = tensor.clone(memory_format=torch.contiguous_format)
            changed.view(-1)[draws.integers(tensor.numel())] = (
                torch.nan if corruption is Corruption.NAN else torch.inf
            )
            return changed
        case Corruption.HUGE:
            return tensor * 1e12
        case Corruption.SIGN:
            return -tensor
        case Corruption.SHAPE:
            return tensor[:-1] if tensor.dim() else tensor.reshape(1)
        case Corruption.DTYPE:
            return torch.zeros_like(tensor, dtype=torch.uint8)
        case Corruption.LABELS:
            return torch.full_like(tensor, _NO_CLASS)
    return None
