from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from flwr.app import Context, RecordDict

from apps.image_classification import server_app
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
