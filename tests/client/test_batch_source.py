from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from flower_psl import ClientError, ConfigError
from flower_psl.client.batch_source import BatchSource, MapDataset

CPU = torch.device("cpu")
IMAGES, LABELS = torch.rand(10, 2, 3), torch.arange(10)
INDICES = [7, 0, 7, 3]


class Examples(Dataset[Any]):
    """Yields what a function makes of an index."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self._make(index)


class InBulk(Examples):
    def __init__(self, make: Callable[[int], Any]) -> None:
        super().__init__(make)
        self.asked: list[list[int]] = []

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked.append(indices)
        return [self._make(index) for index in indices]


def pair(index: int) -> tuple[Tensor, int]:
    return IMAGES[index], int(LABELS[index])


def batch(dataset: MapDataset, **kwargs: Any) -> tuple[Any, Tensor]:
    return BatchSource(dataset, kwargs.get("collate_fn")).batch(INDICES, CPU)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(IMAGES, LABELS),
        Examples(pair),
        InBulk(pair),
        Subset(TensorDataset(IMAGES, LABELS), range(10)),
        Examples(lambda index: [IMAGES[index].numpy(), np.int64(LABELS[index])]),
    ],
    ids=["tensors", "one by one", "in bulk", "subset", "numpy"],
)
def test_every_way_of_fetching_gives_the_same_batch(dataset: MapDataset) -> None:
    inputs, labels = batch(dataset)
    assert torch.equal(inputs, IMAGES[INDICES])
    assert labels.tolist() == INDICES


@pytest.mark.parametrize("indices", [np.array([7, 0]), [7, 0], range(7, -1, -7)])
def test_indices_may_be_arrays_lists_or_ranges(indices: Any) -> None:
    for dataset in (TensorDataset(IMAGES, LABELS), Examples(pair), InBulk(pair)):
        assert BatchSource(dataset, None).batch(indices, CPU)[1].tolist() == [7, 0]


def test_a_dataset_that_fetches_in_bulk_is_asked_once() -> None:
    dataset = InBulk(pair)
    batch(dataset)
    assert dataset.asked == [INDICES]


def test_a_subclass_of_tensor_dataset_keeps_its_own_indexing() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = self.tensors
            return 2 * image[index], label[index]

    assert torch.equal(batch(Doubled(IMAGES, LABELS))[0], 2 * IMAGES[INDICES])


def test_a_collate_function_sees_the_examples() -> None:
    def padded(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        rows = torch.nn.utils.rnn.pad_sequence([row for row, _ in examples], batch_first=True)
        return rows, torch.tensor([label for _, label in examples])

    dataset = Examples(lambda index: (torch.ones(index), index))
    inputs, labels = batch(dataset, collate_fn=padded)
    assert inputs.sum(1).tolist() == labels.tolist() == INDICES


def test_a_collate_function_is_used_for_tensor_datasets_too() -> None:
    def flipped(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([-image for image, _ in examples]), torch.zeros(len(examples))

    inputs, labels = batch(TensorDataset(IMAGES, LABELS), collate_fn=flipped)
    assert torch.equal(inputs, -IMAGES[INDICES])
    assert labels.tolist() == [0.0] * 4


def test_inputs_may_be_a_tuple_or_a_dict() -> None:
    several = Examples(lambda index: ((IMAGES[index], LABELS[index]), 1))
    named = Examples(lambda index: ({"image": IMAGES[index], "n": index}, 1))
    inputs, _ = batch(several)
    assert isinstance(inputs, tuple)
    assert torch.equal(inputs[0], IMAGES[INDICES])
    inputs, _ = batch(named)
    assert list(inputs) == ["image", "n"]
    assert inputs["n"].tolist() == INDICES


def test_labels_are_contiguous() -> None:
    labels = torch.arange(20).reshape(2, 10).T
    assert batch(TensorDataset(IMAGES, labels))[1].is_contiguous()


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        (Examples(lambda index: IMAGES[index]), "Tensor"),
        (Examples(lambda index: {"image": IMAGES[index], "label": 1}), "dict"),
        (Examples(lambda index: (IMAGES[index], 1, 2)), "list"),
        (TensorDataset(IMAGES), "tuple"),
        (TensorDataset(IMAGES, LABELS, LABELS), "tuple"),
    ],
)
def test_what_is_no_pair_is_refused(dataset: MapDataset, kind: str) -> None:
    with pytest.raises(
        ClientError, match=rf"a batch of type {kind}; .*\(input, label\) .*collate"
    ):
        batch(dataset)


def test_labels_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(
        ClientError, match=r"labels of a batch are a tuple; they must be one tensor"
    ):
        batch(Examples(lambda index: (IMAGES[index], "cat")))


@pytest.mark.parametrize("inputs", ["text", {"image": "text"}, ("text", 1), (), {}])
def test_inputs_that_are_no_tensors_are_refused(inputs: object) -> None:
    def collate(examples: list[Any]) -> Any:
        return inputs, torch.zeros(len(examples))

    with pytest.raises(ClientError, match=r"inputs of a batch are a .*; they must be a tensor"):
        batch(Examples(pair), collate_fn=collate)


@pytest.mark.parametrize("dataset", [iter([1]), 5, (index for index in range(3))])
def test_what_is_not_map_style_is_refused(dataset: object) -> None:
    with pytest.raises(ConfigError, match="is not a map-style dataset; it needs __len__ and"):
        BatchSource(cast(MapDataset, dataset), None)
