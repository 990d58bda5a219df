"""Where the data come from: the embedded digits, or whatever FederatedDataset loads."""

from typing import TYPE_CHECKING

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from datasets.exceptions import DatasetsError
from flwr_datasets import FederatedDataset
from PIL.Image import fromarray

from flower_psl import ConfigError

if TYPE_CHECKING:
    from .config import DataConfig

# Never the seed of a run: whoever takes part, and every run, sees the same order and split.
SHUFFLE_SEED = 42


def load_splits(config: "DataConfig") -> tuple[Dataset, Dataset]:
    """Load the training and the test split, each in a random order that is always the same.

    Returns
    -------
    tuple of Dataset
        Training split (cut off after ``max-train-examples``) and test split.

    Raises
    ------
    ConfigError
        If the data set or a split does not exist or cannot be reached, or a split is empty.
    """
    load = _digits if config.dataset == "digits" else _federated
    train, test = load(config)
    for key, split in (("train-split", train), ("test-split", test)):
        if not len(split):
            raise ConfigError(
                f"{key} of dataset = {config.dataset!r} has no examples; name another split."
            )
    if config.max_train_examples:
        train = train.select(range(min(config.max_train_examples, len(train))))
    return train, test


def _digits(config: "DataConfig") -> tuple[Dataset, Dataset]:
    from sklearn.datasets import load_digits  # which other data sets do without

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)  # grey levels 0 ... 16
    dataset = Dataset.from_dict(
        {"image": [fromarray(scan) for scan in pixels], "label": scans.target},
        features=Features(image=Image(), label=ClassLabel(num_classes=10)),
    )
    splits = dataset.train_test_split(test_size=0.2, stratify_by_column="label", seed=SHUFFLE_SEED)
    for key, name in (("train-split", config.train_split), ("test-split", config.test_split)):
        if name not in splits:
            raise ConfigError(
                f"{key} = {name!r} is no split of dataset = 'digits'; "
                f"choose one of: {', '.join(splits)}."
            )
    return splits[config.train_split], splits[config.test_split]


def _federated(config: "DataConfig") -> tuple[Dataset, Dataset]:
    source = FederatedDataset(
        dataset=config.dataset,
        subset=config.subset or None,
        partitioners={},  # dealt out elsewhere, where the digits are too
        seed=SHUFFLE_SEED,
    )
    try:
        return source.load_split(config.train_split), source.load_split(config.test_split)
    except (OSError, DatasetsError) as error:
        why = str(error).rstrip(".")
        raise ConfigError(
            f"dataset = {config.dataset!r} cannot be loaded: {why}. It has to be 'digits', a data "
            "set on the Hugging Face Hub that this machine can reach or has in its cache, or the "
            "absolute path of a local folder; check the name and the network."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"train-split = {config.train_split!r} and test-split = {config.test_split!r} of "
            f"dataset = {config.dataset!r}, subset = {config.subset!r}, cannot be loaded: {error} "
            "Set train-split, test-split and subset to names that exist."
        ) from error
