from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from apps.image_classification.config import DataConfig
from apps.image_classification.data import ImageData, held_out, load_images
from apps.image_classification.image_spec import ImageSpec

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def test_digits_become_normalized_tensors() -> None:
    data = ImageData(DataConfig(partitioner="iid"))
    images, labels = data.partition(0, 1).tensors
    assert data.spec == ImageSpec(num_channels=1, height=8, width=8, num_classes=10)
    assert (images.shape, images.dtype) == ((1437, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((1437,), torch.int64)
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01
    assert len(data.test_set()) == 360


def test_clients_share_all_examples_and_may_have_none() -> None:
    config = DataConfig(dirichlet_alpha=0.001, min_partition_size=0, max_train_examples=100)
    data = ImageData(config)
    parts = [data.partition(key, 20) for key in range(20)]
    assert sum(map(len, parts)) == 100
    empty = next(part for part in parts if not len(part))
    assert empty.tensors[0].shape == (0, 1, 8, 8)
    assert empty.tensors[1].shape == (0,)


def test_a_partition_is_decoded_once_and_a_data_set_loaded_once() -> None:
    config = DataConfig(max_train_examples=40)
    assert load_images(config) is load_images(DataConfig(max_train_examples=40))
    assert load_images(config).partition(1, 3) is load_images(config).partition(1, 3)
    assert load_images(config) is not load_images(DataConfig(max_train_examples=41))


def test_labels_stay_with_their_images(parquet_folder: Path) -> None:
    data = ImageData(DataConfig(dataset=str(parquet_folder), partitioner="iid"))
    assert data.spec == ImageSpec(num_channels=3, height=6, width=5, num_classes=3)
    parts = [data.partition(key, 4) for key in range(4)]
    images = torch.cat([part.tensors[0] for part in parts])
    labels = torch.cat([part.tensors[1] for part in parts])
    colours = (images[:, 0, 0, 0] * 0.5 + 0.5).mul(255).round().long()
    assert sorted(colours.tolist()) == list(range(40))
    assert torch.equal(labels, colours % 3)


def test_natural_ids_and_text_labels(parquet_folder: Path) -> None:
    data = ImageData(
        DataConfig(
            dataset=str(parquet_folder),
            partitioner="natural-id",
            partition_by="writer",
            label_column="writer",
        )
    )
    assert data.spec.num_classes == 4
    assert data.partition(2, 4).tensors[1].tolist() == [2] * 10


def test_a_folder_of_image_files(image_folder: Path) -> None:
    data = ImageData(DataConfig(dataset=str(image_folder), partitioner="iid", image_mode="RGB"))
    assert data.spec == ImageSpec(num_channels=3, height=9, width=8, num_classes=2)
    assert data.test_set().tensors[1].bincount().tolist() == [2, 2]
    assert len(data.partition(0, 3)) == 4


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"CIFAR-10 is not at {CIFAR10}")
def test_cifar10() -> None:
    data = ImageData(DataConfig(dataset=str(CIFAR10), max_train_examples=200))
    assert data.spec == ImageSpec(num_channels=3, height=32, width=32, num_classes=10)
    parts = [data.partition(key, 4) for key in range(4)]
    images = torch.cat([part.tensors[0] for part in parts])
    assert images.shape == (200, 3, 32, 32)
    assert images.mean((0, 2, 3)).abs().max() < 0.15
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.15


@pytest.mark.parametrize("partition_id", [-1, 2])
def test_clients_that_do_not_exist_are_refused(
    refusal: Callable[..., str], partition_id: int
) -> None:
    data = load_images(DataConfig(max_train_examples=40))
    text = refusal(data.partition, partition_id, 2)
    assert f"partition-id = {partition_id} is out of range" in text
    assert "num-partitions = 2 it has to be one of 0 ... 1" in text


@pytest.mark.parametrize(("size", "num_test"), [(0, 0), (4, 0), (5, 1), (14, 2)])
def test_a_fifth_is_held_out(size: int, num_test: int) -> None:
    examples = TensorDataset(torch.arange(size) * 10, torch.arange(size))
    train, test = held_out(examples)
    assert train.tensors[1].tolist() == list(range(size - num_test))
    assert test.tensors[1].tolist() == list(range(size - num_test, size))
    assert test.tensors[0].tolist() == [10 * n for n in range(size - num_test, size)]
