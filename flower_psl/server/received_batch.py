"""What clients sent for a step, looked at before anything is computed with it."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire import StepId


class ReceivedBatch(NamedTuple):
    """One client's part of a global batch."""

    id: StepId
    activations: Tensor
    labels: Tensor
    moments: Mapping[str, Tensor]


def odd_batches(batches: Mapping[int, ReceivedBatch]) -> dict[int, ProtocolError]:
    """Return what is wrong with the batches that cannot be one with most others.

    Parameters
    ----------
    batches : mapping of int to ReceivedBatch
        Batches by client key, each in order by itself.
    """
    layers = {name for batch in batches.values() for name in batch.moments}
    return {
        **{
            key: error
            for layer in sorted(layers)
            if layer.endswith(".count")
            for key, error in _odd_calls(batches, layer).items()
        },
        **_odd_tensors(batches, "labels", lambda batch: batch.labels),
        **_odd_tensors(batches, "activations", lambda batch: batch.activations),
    }


def _odd_tensors(
    batches: Mapping[int, ReceivedBatch], name: str, tensor_of: Callable[[ReceivedBatch], Tensor]
) -> dict[int, ProtocolError]:
    tensors = {key: tensor_of(batch) for key, batch in batches.items()}
    odd, usual = _odd({key: (part.shape[1:], part.dtype) for key, part in tensors.items()})
    return {
        key: ProtocolError(
            f"{batches[key].id}: its {name} are {_kind(tensors[key])} an example, but "
            f"{_kind(tensors[usual])} at client {usual}; all clients must agree. Give them the "
            "same model, transforms and label type."
        )
        for key in odd
    }


def _odd_calls(batches: Mapping[int, ReceivedBatch], layer: str) -> dict[int, ProtocolError]:
    reported = {key: batch.moments for key, batch in batches.items() if layer in batch.moments}
    odd, usual = _odd({key: len(moments[layer]) for key, moments in reported.items()})
    return {
        key: ProtocolError(
            f"{batches[key].id}: BatchNorm {layer.removesuffix('.count')!r} ran "
            f"{len(reported[key][layer])} times in its forward pass, but "
            f"{len(reported[usual][layer])} times at client {usual}; it must run equally often on "
            "every client. Put it behind the cut, or replace it by to_group_norm(model)."
        )
        for key in odd
    }


def _odd(kinds: Mapping[int, Hashable]) -> tuple[list[int], int]:
    """Return who differs from most, and one of these most."""
    if len(set(kinds.values())) < 2:
        return [], -1
    [(usual, _)] = Counter(kinds.values()).most_common(1)
    odd = [key for key, kind in kinds.items() if kind != usual]
    return odd, next(key for key, kind in kinds.items() if kind == usual)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape[1:])}"
