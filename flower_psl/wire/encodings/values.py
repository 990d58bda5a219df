"""Named tensors as they travel, and back.

What travels is named after the value: ``activations`` in 8 bits has the parts
``activations``, ``activations|scale`` and ``activations|zero``.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.encodings.encoding import Encoding
from flower_psl.wire.encodings.encodings import ENCODINGS

# Called only where numbers are drawn, since most encodings need none.
Seed = Callable[[], int]

_RAW = ENCODINGS["raw"]
# Examples come first in what crosses the cut, (B, C, ...), and channels first in
# parameters, (C_out, C_in, ...).
_BATCH_AXIS = 1
_PARAMETER_AXIS = 0


class EncodedBatch(NamedTuple):
    """Activations or a cut gradient, as they travel.

    Attributes
    ----------
    values : Tensor
        ``(B, ...)``.
    extras : mapping of str to Tensor
        What decoding needs besides, by name.
    """

    values: Tensor
    extras: Mapping[str, Tensor]


def encode_batch(name: str, tensor: Tensor, encoding: str, seed: Seed | None) -> EncodedBatch:
    """Encode activations or a cut gradient.

    Parameters
    ----------
    name : str
        ``"activations"`` or ``"gradient"``.
    tensor : Tensor
        ``(B, C, ...)`` or ``(B,)``.
    encoding : str
        A name in `ENCODINGS`.
    seed : callable or None
        Returns the seed of rounding at random; None rounds to the nearest value.
    """
    if encoding == "raw":
        return EncodedBatch(tensor, {})
    parts = _encode(name, tensor, encoding, _BATCH_AXIS, seed)
    return EncodedBatch(parts.pop(name), parts)


def decode_batch(
    name: str, batch: EncodedBatch, encoding: str, dtype: torch.dtype | None, where: object
) -> Tensor:
    """Decode activations or a cut gradient.

    Parameters
    ----------
    name : str
        The name that `encode_batch` was given.
    batch : EncodedBatch
        What travelled.
    encoding : str
        A name in `ENCODINGS`.
    dtype : torch.dtype or None
        The original's; ``"raw"`` does not need it.
    where : object
        Client, round and step, as text for the message.

    Raises
    ------
    ProtocolError
        If a part is missing, unknown, or not what the encoding makes.
    """
    if encoding == "raw":
        _refuse_left(batch.extras, encoding, where)
        return batch.values
    if dtype is None:
        raise ProtocolError(
            f"{where}: {name!r} encoded as {encoding!r} without the dtype of the original; "
            "decoding needs it. Install the same flower-psl on both sides."
        )
    left = {name: batch.values, **batch.extras}
    decoded = _decode(name, left, encoding, _BATCH_AXIS, dtype, where)
    _refuse_left(left, encoding, where)
    return decoded


def encode_parameters(
    tensors: Mapping[str, Tensor],
    encoding: str,
    parameters: Collection[str],
    seed: Seed | None = None,
) -> Mapping[str, Tensor]:
    """Encode a segment's weights or parameter gradients.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Parameters or their gradients, and buffers.
    encoding : str
        A name in `ENCODINGS`. With ``"raw"`` the very mapping is returned.
    parameters : collection of str
        What is encoded; the rest, the buffers, stays as it is.
    seed : callable, optional
        Returns the seed of rounding at random; None rounds to the nearest value.
    """
    if encoding == "raw":
        return tensors
    encoded: dict[str, Tensor] = {}
    seed = None if seed is None else cache(seed)
    for name, tensor in tensors.items():
        chosen = encoding if name in parameters else "raw"
        encoded |= _encode(name, tensor, chosen, _PARAMETER_AXIS, seed)
    return encoded


def decode_parameters(
    tensors: Mapping[str, Tensor], encoding: str, like: Mapping[str, Tensor], where: object
) -> Mapping[str, Tensor]:
    """Decode a segment's weights or parameter gradients.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        What travelled. With ``"raw"`` it is returned as it is.
    encoding : str
        A name in `ENCODINGS`.
    like : mapping of str to Tensor
        Parameters and buffers of the shape and dtype of what is decoded; parameters are
        `torch.nn.Parameter`, and may be on the meta device. One that did not travel is
        left out.
    where : object
        Client, round and step, as text for the message.

    Raises
    ------
    ProtocolError
        If a part is missing, unknown, or not what the encoding makes, or a shape is wrong.
    """
    if encoding == "raw":
        return tensors
    left, decoded = dict(tensors), {}
    for name, original in like.items():
        if name in left:
            chosen = encoding if isinstance(original, torch.nn.Parameter) else "raw"
            value = _decode(name, left, chosen, _PARAMETER_AXIS, original.dtype, where)
            if value.shape != original.shape:
                raise ProtocolError(
                    f"{where}: {name!r} travelled with shape {tuple(value.shape)}; here it has "
                    f"{tuple(original.shape)}. Build the same model on both sides."
                )
            decoded[name] = value
    _refuse_left(left, encoding, where)
    return decoded


def _encode(
    name: str, tensor: Tensor, encoding: str, axis: int, seed: Seed | None
) -> dict[str, Tensor]:
    chosen = _applied(encoding, tensor, tensor.dtype)
    new_rng = None if seed is None else partial(_generator, seed, name)
    parts = chosen.encode(tensor, axis, new_rng)
    return {name + suffix: part for suffix, part in zip(chosen.suffixes, parts, strict=True)}


def _decode(
    name: str, left: dict[str, Tensor], encoding: str, axis: int, dtype: torch.dtype, where: object
) -> Tensor:
    """Decode a value and take its parts out of `left`."""
    chosen = _applied(encoding, left[name], dtype)
    names = [name + suffix for suffix in chosen.suffixes]
    if missing := [part for part in names if part not in left]:
        raise ProtocolError(
            f"{where}: {name!r} encoded as {encoding!r} without {missing}; all of {names} must "
            "travel. Install the same flower-psl on both sides."
        )
    try:
        return chosen.decode([left.pop(part) for part in names], dtype, axis)
    except ProtocolError as error:
        raise ProtocolError(
            f"{where}: {name!r} encoded as {encoding!r} has {error}. If both sides have the same "
            "flower-psl, look at the sender."
        ) from error


def _applied(encoding: str, tensor: Tensor, dtype: torch.dtype) -> Encoding:
    """Return the encoding, or raw where it does not apply; both sides come to the same."""
    chosen = ENCODINGS[encoding]
    smaller = dtype.is_floating_point and dtype.itemsize > chosen.itemsize
    return chosen if smaller and tensor.numel() else _RAW


def _refuse_left(left: Mapping[str, Tensor], encoding: str, where: object) -> None:
    if left:
        raise ProtocolError(
            f"{where}: the tensors {sorted(left)} are no part of what travels as {encoding!r}. "
            "Build the same model, and install the same flower-psl, on both sides."
        )


def _generator(seed: Seed, name: str) -> np.random.Generator:
    """Return a generator of one value: no two of a step may draw the same numbers."""
    digest = hashlib.sha256(f"{seed()} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
