"""Nested state as two plain things: a tree that JSON can hold, and named tensors.

None, booleans, integers, strings, finite floats and lists are themselves. All else is an
object with one key, which says what it is:

=============  ==============================================================
key            value
=============  ==============================================================
``map``        pairs of key and value, in order: a dict
``counter``    the same: a ``collections.Counter``
``tuple``      a list
``float``      ``"nan"``, ``"inf"`` or ``"-inf"``
``tensor``     the name of a tensor
``array``      the name of the tensor that a NumPy array became
``scalar``     the same of a NumPy scalar
=============  ==============================================================
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flower_psl.errors import CheckpointError

Json = Any
Tensors = dict[str, Tensor]

_NUMPY_DTYPES = {
    *("bool", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}


def flatten(value: object, tensors: Tensors, path: str = "") -> Json:
    """Return the tree of some state.

    Parameters
    ----------
    value : object
        The state.
    tensors : dict of str to Tensor
        Takes the tensors, not copied, each by its path such as ``model/conv1.weight``.
    path : str
        Where in the state `value` is.

    Raises
    ------
    CheckpointError
        If it holds anything else than is said above.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [flatten(part, tensors, f"{path}/{at}") for at, part in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": flatten(list(value), tensors, path)}
    if isinstance(value, Mapping):
        pairs = [
            [flatten(key, tensors, path), flatten(part, tensors, f"{path}/{key}")]
            for key, part in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "map": pairs}
    name = path.removeprefix("/")
    while name in tensors:  # a key may itself have a slash
        name += "'"
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in _NUMPY_DTYPES:
        tensors[name] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    raise CheckpointError(
        f"{name} is a {type(value).__name__}; a checkpoint holds numbers, strings, lists, tuples, "
        "dicts, dense tensors and NumPy arrays of numbers. Keep anything else out of the state, "
        "or run without checkpoints."
    )


def unflatten(tree: Json, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state of a tree and its tensors.

    Raises
    ------
    CheckpointError
        If the tree is none that `flatten` makes, or a tensor is missing.
    """
    if isinstance(tree, list):
        return [unflatten(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1 or (kind := next(iter(tree))) not in _KINDS:
        raise CheckpointError(
            f"a saved state has an object with the keys {sorted(tree)[:5]}; it has one of "
            f"{sorted(_KINDS)}. Use a checkpoint that nobody has changed."
        )
    try:
        return _KINDS[kind](tree[kind], tensors)
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"a saved state has a {kind!r} that cannot be read ({type(error).__name__}: {error}). "
            "Use a checkpoint that nobody has changed."
        ) from error


def _pairs(content: Json, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {unflatten(key, tensors): unflatten(part, tensors) for key, part in content}


_KINDS: dict[str, Callable[[Json, Mapping[str, Tensor]], Any]] = {
    "map": _pairs,
    "counter": lambda content, tensors: Counter(_pairs(content, tensors)),
    "tuple": lambda content, tensors: tuple(unflatten(part, tensors) for part in content),
    "float": lambda content, tensors: float(content),
    "tensor": lambda content, tensors: tensors[content],
    "array": lambda content, tensors: tensors[content].numpy(),
    "scalar": lambda content, tensors: tensors[content].numpy()[()],
}
