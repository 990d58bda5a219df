import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytest
from flwr.app import ArrayRecord, Error, Message

from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from apps.image_classification.evaluation import evaluate
from apps.image_classification.models import initial_model
from apps.image_classification.run_phases import run_phases
from apps.image_classification.whole_model import Turn, train_whole
from flower_psl import ClientError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]
Devices = Callable[..., "FakeGrid"]
ALONE: RunConfig = {
    "method": "local-only",
    "max-train-examples": 90,
    "partitioner": "iid",
    "min-available-nodes": 3,
    "batch-size": 24,
    "num-server-rounds": 2,
}


def test_every_device_trains_by_itself_and_shares_nothing(
    devices: Devices, tmp_path: Path
) -> None:
    run_config = ALONE | {"out": str(tmp_path)}
    config = AppConfig.from_run_config(run_config)
    images, grid = load_images(config.data), devices(run_config)
    result = run_phases(grid, config, images)

    found = []
    for key in range(3):
        model = initial_model("small-cnn", images.spec, 0)
        for server_round in (1, 2):
            turn = Turn(seed=0, server_round=server_round, client_key=key)
            train_whole(model, images.partition(key, 3), config, turn, batch_size=8)
        found.append(evaluate(model, images.test_set(), batch_size=256, device="cpu"))
    metrics = result.evaluate_metrics_clientapp[2]
    assert metrics["accuracy"] == pytest.approx(fmean(each.accuracy for each in found))
    assert metrics["loss"] == pytest.approx(fmean(each.loss for each in found), rel=1e-5)
    assert metrics["num-examples"] == 360

    assert not result.arrays
    with_arrays = [
        message.metadata.dst_node_id
        for message in grid.pushed
        if any(isinstance(record, ArrayRecord) for record in message.content.values())
    ]
    assert sorted(with_arrays) == [98, 99, 100]  # once each: the model to begin with
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final_accuracy"] == pytest.approx(metrics["accuracy"])
    assert summary["bytes_up"] < 1000 < summary["bytes_down"]
    assert (summary["num_clients"], summary["num_examples"], summary["steps"]) == (3, 90, 2)


def test_a_device_that_fails_ends_the_run(devices: Devices) -> None:
    grid = devices(ALONE)
    healthy = grid.nodes[99]

    def fails_to_train(message: Message) -> Message | None:
        if message.metadata.message_type == "train.alone":
            return Message(Error(2, "out of memory"), reply_to=message)
        return healthy(message)

    grid.nodes[99] = fails_to_train
    config = AppConfig.from_run_config(ALONE)
    with pytest.raises(ClientError, match="node 99, client 1, failed: out of memory"):
        run_phases(grid, config, load_images(config.data))
