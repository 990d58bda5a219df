from collections.abc import Callable
from typing import cast

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from apps.image_classification.device import Device, partition_of
from apps.image_classification.models import initial_model

RunConfig = dict[str, bool | float | int | str]
NODE: RunConfig = {"partition-id": 1, "num-partitions": 3}
SMALL: RunConfig = {"max-train-examples": 60, "partitioner": "iid", "batch-size": 24}


def context(node_config: RunConfig, run_config: RunConfig) -> Context:
    return Context(
        run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config=run_config
    )


@pytest.mark.parametrize(
    "node_config", [{}, {"partition-id": 0}, {"partition-id": "0", "num-partitions": 2}]
)
def test_a_node_without_a_partition_is_refused(
    refusal: Callable[..., str], node_config: RunConfig
) -> None:
    text = refusal(Device, context(node_config, {}))
    assert repr(node_config) in text
    assert "partition-id and num-partitions" in text
    assert '--node-config "partition-id=0 num-partitions=2"' in text


def test_a_partition_is_read_from_the_node_config() -> None:
    assert partition_of(NODE | {"client-name": "a"}) == (1, 3)


def test_configuration_errors_come_first(refusal: Callable[..., str]) -> None:
    assert "sampler = 'x'" in refusal(Device, context({}, {"sampler": "x"}))


@pytest.mark.parametrize(("fraction", "sizes"), [(0.0, (20, 0)), (0.5, (16, 4))])
def test_a_fifth_is_held_out_if_devices_evaluate(fraction: float, sizes: tuple[int, int]) -> None:
    device = Device(context(NODE, SMALL | {"fraction-evaluate": fraction}))
    assert (len(device.train_set), len(device.test_set)) == sizes


def trained(told: ConfigRecord | None, run_config: RunConfig) -> tuple[float, float]:
    """Return the loss of a device's training, and a weight after it."""
    device = Device(context(NODE, SMALL | run_config))
    model = initial_model("small-cnn", device.images.spec, 0)
    content = RecordDict({} if told is None else {"config": told})
    metrics = device.train(model, Message(content, 2, "train"))
    assert metrics["num-examples"] == 20
    return cast(float, metrics["loss"]), float(model.state_dict()["head.weight"].sum())


def test_a_message_may_name_a_seed_and_else_it_is_the_runs(flower_run: None) -> None:
    plain = trained(ConfigRecord({"server-round": 1}), {"seed": 3})
    assert trained(None, {"seed": 3}) == plain
    assert trained(ConfigRecord({"server-round": 1, "seed": 3}), {"seed": 3}) == plain
    assert trained(ConfigRecord({"server-round": 1, "seed": 4}), {"seed": 3}) != plain
    assert trained(ConfigRecord({"server-round": 2}), {"seed": 3}) != plain


def test_a_message_brings_the_weight_of_fedprox(flower_run: None) -> None:
    plain, pulled = (
        trained(ConfigRecord({"server-round": 1, "proximal-mu": mu}), {}) for mu in (0.0, 5.0)
    )
    assert plain[1] != pulled[1]


def test_nothing_held_out_is_no_metric_of_anything() -> None:
    device = Device(context(NODE, SMALL))
    model = initial_model("small-cnn", device.images.spec, 0)
    assert dict(device.evaluate(model, device.test_set)) == {
        "accuracy": 0.0,
        "loss": 0.0,
        "num-examples": 0,
    }
