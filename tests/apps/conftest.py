"""Small data sets on disk, and one way to look at a refusal."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL.Image import fromarray

from flower_psl import ConfigError


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache", numbered=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Call a function that has to raise ConfigError, and return what the error says."""

    def message(function: Callable[..., object], *args: object, **kwargs: object) -> str:
        with pytest.raises(ConfigError) as error:
            function(*args, **kwargs)
        return str(error.value)

    return message


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """40 training and 10 test images of 6 x 5 pixels in RGB: image n is of colour n."""
    features = Features(
        picture=Image(), kind=ClassLabel(names=["a", "b", "c"]), writer=Value("string")
    )
    for split, size in (("train", 40), ("test", 10)):
        rows = {
            "picture": [fromarray(np.full((6, 5, 3), n, dtype=np.uint8)) for n in range(size)],
            "kind": [n % 3 for n in range(size)],
            "writer": [f"w{n % 4}" for n in range(size)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two folders of grey PNG files for each split: the folder is the class."""
    random = np.random.default_rng(0)
    for split, size in (("train", 6), ("test", 2)):
        for kind in ("cat", "dog"):
            (tmp_path / split / kind).mkdir(parents=True)
            for n in range(size):
                pixels = random.integers(0, 256, (9, 8), dtype=np.uint8)
                fromarray(pixels).save(tmp_path / split / kind / f"{n}.png")
    return tmp_path
