import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from safetensors.torch import load_file
from torch import Tensor

from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from apps.image_classification.models import initial_model
from apps.image_classification.run_phases import run_phases
from flower_psl import ParallelSplitLearning

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]
Devices = Callable[..., "FakeGrid"]
SMALL: RunConfig = {
    "max-train-examples": 60,
    "partitioner": "iid",
    "min-available-nodes": 3,
    "batch-size": 20,
    "transport": "messages",
    "seed": 2,
}


def train(devices: Devices, run_config: RunConfig) -> Result:
    config = AppConfig.from_run_config(SMALL | run_config)
    return run_phases(devices(SMALL | run_config), config, load_images(config.data))


def weights(result: Result) -> dict[str, Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def test_phases_go_on_from_each_other_in_one_history(devices: Devices, tmp_path: Path) -> None:
    phases = "fedavg:2, gpsl:1, splitfed-v1:1, centralized:1, fedadam:1"
    result = train(devices, {"phases": phases, "out": str(tmp_path)})
    assert list(result.evaluate_metrics_serverapp) == list(range(7))
    assert sorted(result.train_metrics_clientapp) == list(range(1, 7))
    config = AppConfig.from_run_config(SMALL)
    model = initial_model("small-cnn", load_images(config.data).spec, 2).state_dict()
    assert list(weights(result)) == list(model)
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in weights(result).items():
        assert tensor.dtype == model[name].dtype
        assert torch.equal(saved[name], tensor)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {key: summary[key] for key in ("method", "sampler", "cut", "rounds", "seed")} == {
        "method": phases,
        "sampler": "gpsl, fls",
        "cut": "block1",
        "rounds": 6,
        "seed": 2,
    }
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(step["round"] for step in steps)) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "accuracy.png").exists()


def test_a_first_phase_is_the_run_of_its_method(devices: Devices) -> None:
    alone = train(devices, {"method": "gpsl", "num-server-rounds": 1})
    first = train(devices, {"phases": "gpsl:1, fedavg:1"})
    for server_round in (0, 1):
        assert (
            first.evaluate_metrics_serverapp[server_round]
            == alone.evaluate_metrics_serverapp[server_round]
        )


@pytest.mark.parametrize("names", [("fedavg", "gpsl"), ("gpsl", "fedavg")])
def test_a_phase_begins_with_what_the_one_before_has_trained(
    devices: Devices, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    given: list[dict[str, Tensor]] = []

    def watch(kind: Any) -> None:
        start = kind.start

        def noting(
            self: Strategy, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **others: Any
        ) -> Any:
            given.append(dict(initial_arrays.to_torch_state_dict()))
            return start(self, grid, initial_arrays, *args, **others)

        monkeypatch.setattr(kind, "start", noting)

    watch(ParallelSplitLearning)
    watch(Strategy)
    train(devices, {"phases": ", ".join(f"{name}:1" for name in names)})
    alone_config: RunConfig = {"method": names[0], "num-server-rounds": 1}
    if names[0] == "fedavg":
        alone_config["transport"] = "auto"  # it has no other
    alone = weights(train(devices, alone_config))
    initial, handed_on, _ = given
    assert handed_on.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(handed_on[name], tensor)
    assert not torch.equal(initial["block1.0.weight"], alone["block1.0.weight"])


def test_a_second_phase_draws_otherwise_than_the_first(devices: Devices) -> None:
    twice = train(devices, {"phases": "gpsl:1, gpsl:1"})
    long = train(devices, {"phases": "gpsl:2"})
    rounds = [result.train_metrics_clientapp for result in (twice, long)]
    assert rounds[0][1] == rounds[1][1]
    assert rounds[0][2]["loss"] != rounds[1][2]["loss"]


def test_batchnorms_counters_stay_whole_numbers(devices: Devices) -> None:
    result = train(
        devices,
        {
            "phases": "fedavg:1, gpsl:1, fedavg:1",
            "model": "resnet18-cifar",
            "steps-per-round": 1,
            "batch-size": 12,
        },
    )
    for name, tensor in weights(result).items():
        assert tensor.is_floating_point() != name.endswith("num_batches_tracked"), name


def test_what_stays_on_devices_is_in_no_result(devices: Devices) -> None:
    run_config: RunConfig = {"client-sync": "none", "fraction-evaluate": 1.0}
    result = train(devices, run_config | {"num-server-rounds": 1})
    assert not any(name.startswith("block1") for name in weights(result))
    assert not result.evaluate_metrics_serverapp
    assert list(result.evaluate_metrics_clientapp) == [1]
