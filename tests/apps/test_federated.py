"""Federated training by the app, against Flower's strategies with clients written by hand."""

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result
from torch import Tensor, nn

from apps.image_classification.config import AppConfig
from apps.image_classification.data import ImageData, load_images
from apps.image_classification.evaluation import central_evaluation
from apps.image_classification.federated import check_buffers
from apps.image_classification.models import initial_model
from apps.image_classification.run_phases import run_phases
from flower_psl import ConfigError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]
Devices = Callable[..., "FakeGrid"]
SMALL: RunConfig = {
    "max-train-examples": 90,
    "dirichlet-alpha": 1.0,
    "min-available-nodes": 3,
    "batch-size": 24,
    "num-server-rounds": 3,
    "seed": 4,
}


def train(devices: Devices, run_config: RunConfig) -> Result:
    config = AppConfig.from_run_config(SMALL | run_config)
    return run_phases(devices(SMALL | run_config), config, load_images(config.data))


def weights(result: Result) -> dict[str, Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def assert_close(left: Result, right: Result) -> None:
    ours, theirs = weights(left), weights(right)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def by_hand(grid: "FakeGrid", images: ImageData, config: AppConfig) -> Result:
    """Run Flower's FedAvg with a client that somebody else would write."""

    def train_on_device(message: Message) -> Message:
        key = 100 - message.metadata.dst_node_id
        model = initial_model("small-cnn", images.spec, 0)
        arrays = message.content.array_records["arrays"]
        model.load_state_dict(arrays.to_torch_state_dict())
        inputs, labels = images.partition(key, 3).tensors
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        server_round = message.content.config_records["config"]["server-round"]
        order = np.random.default_rng([4, cast(int, server_round), key]).permutation(len(labels))
        for start in range(0, len(order), 8):
            some = torch.from_numpy(order[start : start + 8])
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs[some]), labels[some]))
            optimizer.step()
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": len(labels)}),
            }
        )
        return Message(content, reply_to=message)

    class Grid(type(grid)):  # type: ignore[misc]
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            return [train_on_device(message) for message in messages]

    model = initial_model(config.model, images.spec, config.seed)
    return FedAvg(fraction_evaluate=0.0).start(
        Grid(grid.nodes),
        ArrayRecord(model.state_dict()),
        num_rounds=config.num_server_rounds,
        evaluate_fn=central_evaluation(
            initial_model(config.model, images.spec, 0),
            images.test_set(),
            batch_size=256,
            device="cpu",
        ),
    )


def test_fedavg_is_flowers_fedavg_with_a_client_written_by_hand(devices: Devices) -> None:
    random.seed(0)  # the strategy shuffles nodes
    ours = train(devices, {"method": "fedavg"})
    config = AppConfig.from_run_config(SMALL | {"method": "fedavg"})
    theirs = by_hand(devices(SMALL), load_images(config.data), config)
    accuracies = [
        [result.evaluate_metrics_serverapp[n]["accuracy"] for n in range(4)]
        for result in (ours, theirs)
    ]
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][-1] != accuracies[0][0]
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"method": "fedprox", "proximal-mu": 0.0}, {"method": "fedavg"}),
        ({"method": "fedavgm", "server-momentum": 0.0}, {"method": "fedavg"}),
    ],
    ids=["fedprox(0) = fedavg", "fedavgm(1, 0) = fedavg"],
)
def test_methods_that_are_the_same(devices: Devices, left: RunConfig, right: RunConfig) -> None:
    assert_close(train(devices, left), train(devices, right))


def test_a_repeated_run_has_the_same_bits(devices: Devices) -> None:
    first, second = (train(devices, {"method": "fedavg"}) for _ in range(2))
    for name, tensor in weights(first).items():
        assert torch.equal(weights(second)[name], tensor)


@pytest.mark.parametrize(
    "method",
    [
        "fedprox",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
    ],
)
def test_every_strategy_trains_as_itself(devices: Devices, method: str) -> None:
    run_config: RunConfig = {"method": method, "num-server-rounds": 2}
    ours = train(devices, run_config)
    fedavg = weights(train(devices, run_config | {"method": "fedavg"}))
    assert list(weights(ours)) == list(fedavg)
    assert any(
        not torch.allclose(tensor, fedavg[name], atol=1e-4)
        for name, tensor in weights(ours).items()
    )
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(ours).values())
    assert sorted(ours.evaluate_metrics_serverapp) == [0, 1, 2]
    assert sorted(ours.train_metrics_clientapp) == [1, 2]


def test_devices_evaluate_on_what_they_hold_out(devices: Devices) -> None:
    result = train(devices, {"method": "fedavg", "fraction-evaluate": 1.0})
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2, 3]
    assert 0.0 <= cast(float, result.evaluate_metrics_clientapp[3]["accuracy"]) <= 1.0


@pytest.mark.parametrize("method", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_running_statistics_and_steps_on_all_arrays_do_not_go_together(method: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match=f"method '{method}' .*'1.running_mean'.*; choose a mod"):
        check_buffers(model, method)
    check_buffers(model, "fedavg")


def test_devices_without_data_do_not_count(devices: Devices) -> None:
    grid = devices(SMALL)

    def has_none(message: Message) -> Message:
        about = ConfigRecord({"client-key": 1, "num-examples": 0})
        return Message(RecordDict({"about": about}), reply_to=message)

    grid.nodes[99] = has_none
    config = AppConfig.from_run_config(SMALL | {"method": "krum"})
    with pytest.raises(ConfigError, match=r"2 devices have data, and krum .* needs 3; lower num-"):
        run_phases(grid, config, load_images(config.data))
