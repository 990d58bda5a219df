from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets import FederatedDataset
from sklearn.datasets import load_digits

from apps.image_classification.config import DataConfig
from apps.image_classification.splits import load_splits


def pixels(split: Dataset) -> set[bytes]:
    return {np.asarray(image).tobytes() for image in split["image"]}


def test_digits_are_split_four_to_one_in_every_class() -> None:
    train, test = load_splits(DataConfig())
    assert (len(train), len(test)) == (1437, 360)
    in_all = np.bincount(load_digits().target)
    in_test = np.bincount(test["label"][:])
    assert np.all(np.abs(in_test - in_all / 5) <= 1)
    assert np.array_equal(in_test + np.bincount(train["label"][:]), in_all)


def test_digits_are_those_of_scikit_learn() -> None:
    train, test = load_splits(DataConfig())
    scans = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert pixels(train) | pixels(test) == {scan.tobytes() for scan in scans}


def test_the_seed_of_the_run_changes_neither_split_nor_order() -> None:
    first, second = (load_splits(DataConfig(seed=seed)) for seed in (0, 1))
    assert [split["label"][:] for split in first] == [split["label"][:] for split in second]


def test_the_first_examples_are_kept() -> None:
    everything, test = load_splits(DataConfig())
    some, same_test = load_splits(DataConfig(max_train_examples=50))
    assert some["label"][:] == everything["label"][:50]
    assert len(same_test) == len(test)
    assert len(load_splits(DataConfig(max_train_examples=9999))[0]) == len(everything)


def test_a_local_folder_is_loaded_and_shuffled(parquet_folder: Path) -> None:
    train, test = load_splits(DataConfig(dataset=str(parquet_folder)))
    again, _ = load_splits(DataConfig(dataset=str(parquet_folder), seed=1))
    colours = [image.getpixel((0, 0))[0] for image in train["picture"]]
    assert sorted(colours) == list(range(40))
    assert colours != sorted(colours)
    assert [image.getpixel((0, 0))[0] for image in again["picture"]] == colours
    assert len(test) == 10


def test_digits_have_two_splits_only(refusal: Callable[..., str]) -> None:
    text = refusal(load_splits, DataConfig(test_split="validation"))
    assert "test-split = 'validation' is no split of dataset = 'digits'" in text
    assert "choose one of: train, test" in text


def test_a_split_that_is_not_there_is_refused(
    refusal: Callable[..., str], parquet_folder: Path
) -> None:
    text = refusal(load_splits, DataConfig(dataset=str(parquet_folder), test_split="val"))
    assert "test-split = 'val'" in text
    assert "['train', 'test']" in text
    assert "Set train-split, test-split and subset to names that exist." in text


def test_a_folder_that_is_not_there_is_refused(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "nothing")
    text = refusal(load_splits, DataConfig(dataset=folder))
    assert f"dataset = {folder!r} cannot be loaded" in text
    assert "the absolute path of a local folder; check the name and the network" in text


def test_a_hub_that_cannot_be_reached_is_an_error_of_the_configuration(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: FederatedDataset, split: str) -> Dataset:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub.")

    monkeypatch.setattr(FederatedDataset, "load_split", unreachable)
    text = refusal(load_splits, DataConfig(dataset="owner/name"))
    reason = "Couldn't reach 'owner/name' on the Hub"
    assert f"dataset = 'owner/name' cannot be loaded: {reason}. It has to be 'digits'" in text
    assert "check the name and the network" in text


def test_an_empty_split_is_refused(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch, parquet_folder: Path
) -> None:
    load = FederatedDataset.load_split
    monkeypatch.setattr(
        FederatedDataset, "load_split", lambda self, split: load(self, split).select([])
    )
    text = refusal(load_splits, DataConfig(dataset=str(parquet_folder)))
    assert "train-split of dataset =" in text
    assert "has no examples; name another split" in text
