"""Batches of a device's own data, by index."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from flower_psl.errors import ClientError, ConfigError
from flower_psl.split import Inputs


class MapDataset(Protocol):
    """A map-style dataset, as ``torch.utils.data.DataLoader`` takes it."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one example."""


CollateFn = Callable[[list[Any]], Any]


class BatchSource:
    """Makes batches of a map-style dataset.

    A `TensorDataset` is indexed in bulk. Any other dataset is asked for one example at a
    time, or, if it has PyTorch's ``__getitems__``, for all at once, and collated.

    Parameters
    ----------
    dataset : map-style dataset
        Of ``(input, label)`` pairs, unless `collate_fn` makes pairs of what it yields.
    collate_fn : callable, optional
        Makes ``(inputs, labels)`` of a list of examples; `torch.utils.data.default_collate`
        unless given.

    Raises
    ------
    ConfigError
        If the dataset has no length or cannot be indexed.
    """

    def __init__(self, dataset: MapDataset, collate_fn: CollateFn | None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"a {type(dataset).__name__} is not a map-style dataset; it needs __len__ and "
                "__getitem__, since the server decides which examples make a batch"
            )
        self._dataset = dataset
        self._collate_fn = collate_fn
        self._tensors = (
            dataset.tensors if collate_fn is None and type(dataset) is TensorDataset else None
        )

    @property
    def is_tensors(self) -> bool:
        """Whether a batch is rows of tensors, so that nothing is drawn at random."""
        return self._tensors is not None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._dataset)

    def batch(
        self, indices: Sequence[int] | NDArray[np.int64], device: torch.device
    ) -> tuple[Inputs, Tensor]:
        """Return inputs and labels of the examples at `indices`, in that order.

        Raises
        ------
        ClientError
            If the batch is not a pair of inputs (a tensor, or a tuple or dict of tensors)
            and a tensor of labels.
        """
        batch = self._fetch(indices)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ClientError(
                f"the dataset gave a batch of type {type(batch).__name__}; parallel split "
                "learning takes (input, label) pairs. Give a collate_fn that returns "
                "(inputs, labels)."
            )
        inputs, labels = batch
        if not isinstance(labels, Tensor):
            raise ClientError(
                f"the labels of a batch are a {type(labels).__name__}; they must be one tensor. "
                "Give a collate_fn that returns (inputs, labels)."
            )
        return _move(inputs, device), labels.cpu().contiguous()

    def _fetch(self, indices: Sequence[int] | NDArray[np.int64]) -> Any:
        if self._tensors is not None:
            index = torch.as_tensor(indices)
            return tuple(tensor.index_select(0, index) for tensor in self._tensors)
        fetch_all = getattr(self._dataset, "__getitems__", None)
        if fetch_all is not None:
            examples = fetch_all([int(index) for index in indices])
        else:
            examples = [self._dataset[int(index)] for index in indices]
        return (self._collate_fn or default_collate)(examples)


def _move(inputs: Any, device: torch.device) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, (tuple, list)) and _are_tensors(inputs):
        return tuple(part.to(device) for part in inputs)
    if isinstance(inputs, dict) and _are_tensors(inputs.values()):
        return {name: part.to(device) for name, part in inputs.items()}
    raise ClientError(
        f"the inputs of a batch are a {type(inputs).__name__}; they must be a tensor, or a tuple "
        "or dict of tensors. Give a transform or a collate_fn that makes tensors."
    )


def _are_tensors(parts: Collection[Any]) -> bool:
    return len(parts) > 0 and all(isinstance(part, Tensor) for part in parts)
