from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from apps.image_classification import server_app
from apps.image_classification.config import AppConfig
from apps.image_classification.start_checks import check_devices
from flower_psl import ConfigError, CutError, PslError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]
Devices = Callable[..., "FakeGrid"]
SMALL: RunConfig = {
    "max-train-examples": 60,
    "partitioner": "iid",
    "min-available-nodes": 3,
    "batch-size": 20,
}


def run(grid: "FakeGrid", run_config: RunConfig) -> None:
    server_app.main(grid, Context(1, 0, {}, RecordDict(), SMALL | run_config))


@pytest.mark.parametrize(
    ("run_config", "error", "reason"),
    [
        (
            {"client-sync": "round", "client-strategy": "fedprox"},
            ConfigError,
            "client_strategy is a FedProx, which cannot",
        ),
        (
            {"client-strategy": "fedadam"},
            ConfigError,
            "client_strategy is given with client_sync='step'",
        ),
        (
            {"server-update": "per-client-average"},
            ConfigError,
            "server_update is 'per-client-average' with",
        ),
        (
            {"method": "splitfed-v1", "learning-rate-schedule": "cosine"},
            ConfigError,
            "lr_scheduler_fn is given with server_update='per-client-average'",
        ),
        (
            {"phases": "centralized:1, gpsl:1", "min-client-batch": 20},
            ConfigError,
            "batch_size is 20 with min_client_batch 20",
        ),
        (
            {"phases": "gpsl:1, fedadam:1", "model": "resnet18-cifar"},
            ConfigError,
            "'fedadam' takes steps on all arrays",
        ),
        (
            {"phases": "fedavg:1, gpsl:1", "compare": True, "cut": "block9"},
            CutError,
            "block9",
        ),
    ],
)
def test_what_a_method_refuses_is_refused_before_data_are_loaded(
    run_config: RunConfig,
    error: type[PslError],
    reason: str,
    devices: Devices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(server_app, "load_images", loaded.append)
    grid = devices({})
    with pytest.raises(error, match=reason):
        run(grid, run_config)
    assert (loaded, grid.pushed) == ([], [])


def without_data(message: Message) -> Message:
    about = ConfigRecord({"client-key": 1, "num-examples": 0})
    return Message(RecordDict({"about": about}), reply_to=message)


@pytest.mark.parametrize(
    ("phases", "others", "reason"),
    [
        ("fedavg:1, gpsl:1", {"batch-size": 61}, "batch_size is 61, but all .* have 40 examples"),
        ("centralized:1, psl:1", {"batch-size": 61}, "batch_size is 61, but all clients"),
        ("gpsl:1, krum:1", {}, "2 devices have data, and krum .* needs 3"),
        (
            "fedavg:1, custom:1",
            {"client-sync": "round", "client-strategy": "krum"},
            "2 devices have data, and krum .* needs 3",
        ),
    ],
)
@pytest.mark.parametrize("compare", [False, True])
def test_what_devices_have_too_little_for_is_refused_before_the_first_phase(
    phases: str,
    others: RunConfig,
    reason: str,
    compare: bool,
    devices: Devices,
    tmp_path: Path,
) -> None:
    run_config: RunConfig = {"phases": phases, "compare": compare, "out": str(tmp_path), **others}
    grid = devices(SMALL | run_config)
    grid.nodes[99] = without_data
    with pytest.raises(ConfigError, match=reason):
        run(grid, run_config)
    assert {message.metadata.message_type for message in grid.pushed} == {"query"}
    assert (tmp_path / "steps.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "run_config", [{"phases": "centralized:1, centralized:1"}, {"method": "gpsl"}]
)
def test_devices_are_not_asked_where_nothing_comes_of_it(
    devices: Devices, run_config: RunConfig
) -> None:
    grid = devices(SMALL)
    check_devices(grid, AppConfig.from_run_config(SMALL | run_config))
    assert grid.pushed == []
