"""What a loss or another object is, in words that differ when it does."""

import hashlib
from collections.abc import Collection
from functools import partial
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

# What a setting is that can be told in words.
PLAIN = (bool, int, float, str)


def kind_of(value: object) -> str:
    """Return the name of a loss, with its plain settings and its tensors.

    A partial has those that it gives, a module those of the modules in it too. Tensors are
    named by a digest of their values.
    """
    if isinstance(value, partial):
        given = [*((None, each) for each in value.args), *sorted(value.keywords.items())]
        settings = [
            _shown(each) if name is None else f"{name}={_shown(each)}" for name, each in given
        ]
        return f"{kind_of(value.func)}({', '.join(settings)})" if given else kind_of(value.func)
    if isinstance(value, nn.Module):
        parts = {name: part for name, part in value.named_modules() if name}
        tensors = dict([*value.named_parameters(), *value.named_buffers()])
        return _named(
            value,
            *_plain_settings(value),
            *(f"{name}={_shown(tensor)}" for name, tensor in tensors.items()),
            *(f"{name}={_named(part, *_plain_settings(part))}" for name, part in parts.items()),
        )
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return value.__qualname__
    return plain_kind(value)


def plain_kind(value: object, leave_out: Collection[str] = ()) -> str:
    """Return the name of an object's class, with its plain settings."""
    return _named(value, *_plain_settings(value, leave_out))


def _plain_settings(value: object, leave_out: Collection[str] = ("training",)) -> list[str]:
    return [
        f"{name}={part!r}"
        for name, part in getattr(value, "__dict__", {}).items()
        if isinstance(part, PLAIN) and name not in leave_out
    ]


def _named(value: object, *settings: str) -> str:
    name = type(value).__name__
    shown = f"({', '.join(settings)})" if settings or isinstance(value, nn.Module) else ""
    return f"{name}{shown}"


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:12]
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {digest}"
    return repr(value) if value is None or isinstance(value, PLAIN) else kind_of(value)
