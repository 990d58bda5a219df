"""Small data sets on disk, and one way to look at a refusal."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from flwr.app import Context, Error, Message, RecordDict
from PIL.Image import fromarray

from apps.image_classification.client_app import app
from flower_psl import ConfigError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]
Devices = Callable[..., "FakeGrid"]
_RUN_IDS = count(1)


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


@pytest.fixture
def devices(fake_grid: "type[FakeGrid]") -> Devices:
    """Make a grid of devices that run the app, by a run configuration."""

    def answering(context: Context) -> Callable[[Message], Message]:
        def answer(message: Message) -> Message:
            try:
                return app(message, context)
            except Exception as error:  # which Flower makes an error message of
                return Message(Error(2, str(error)), reply_to=message)

        return answer

    def make(run_config: RunConfig, num_devices: int = 3) -> "FakeGrid":
        nodes: dict[int, Callable[[Message], Message | None]] = {}
        run_id = next(_RUN_IDS)  # by which processes keep clients
        for key in range(num_devices):
            node = 100 - key  # so that the order of nodes is not that of the keys
            config: RunConfig = {"partition-id": key, "num-partitions": num_devices}
            nodes[node] = answering(Context(run_id, node, config, RecordDict(), run_config))
        return fake_grid(nodes)

    return make
