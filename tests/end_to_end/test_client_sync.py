"""Devices that train by themselves, through the real `flwr run`: the same bits everywhere."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file
from torch import Tensor

from flower_psl.transport import InProcessTransport
from simulations.flower_simulation import FlowerSimulation
from tests.end_to_end.client_sync_app import (
    NUM_CLIENTS,
    NUM_ROUNDS,
    build_model,
    make_client,
    make_strategy,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
name = "client-sync"
version = "0.1.0"
license = { text = "Apache-2.0" }

[tool.flwr.app]
publisher = "flower-psl"
fab-include = ["flower_psl/**/*.py", "client_sync_app.py", "LICENSE"]

[tool.flwr.app.components]
serverapp = "client_sync_app:server"
clientapp = "client_sync_app:client"

[tool.flwr.app.config]
sync = "round"
client-strategy = ""
transport = "stream"
out = ""
"""


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerSimulation]:
    app = tmp_path_factory.mktemp("app")
    shutil.copytree(ROOT / "flower_psl", app / "flower_psl")
    for file in (ROOT / "LICENSE", Path(__file__).with_name("client_sync_app.py")):
        shutil.copy(file, app)
    (app / "pyproject.toml").write_text(PROJECT)
    with FlowerSimulation(app) as running:
        yield running


def train(
    simulation: FlowerSimulation, out: Path, sync: str, client_strategy: str, transport: str
) -> dict[str, Tensor]:
    config = {"sync": sync, "client-strategy": client_strategy, "transport": transport}
    status, log = simulation.run(
        {**config, "out": str(out)},
        num_supernodes=NUM_CLIENTS,
        num_actors=2,
        timeout_s=240.0,
        quiet=True,
    )
    assert status == "finished:completed", log
    return load_file(out)


def in_process(sync: str, client_strategy: str) -> dict[str, Tensor]:
    """Train with the same clients here; a strategy of Flower aggregates outside of Flower too."""
    result = make_strategy(sync, client_strategy, "auto").run_over(
        InProcessTransport({key: make_client(key) for key in range(NUM_CLIENTS)}),
        ArrayRecord(build_model().state_dict()),
        num_rounds=NUM_ROUNDS,
        timeout=float("inf"),
        evaluate_fn=None,
        min_nodes=NUM_CLIENTS,
    )
    return dict(result.arrays.to_torch_state_dict())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in right
    )


@pytest.mark.parametrize(
    ("sync", "client_strategy", "transport"),
    [("round", "FedAvg", "messages"), ("round", "FedAdam", "stream"), ("none", "", "stream")],
)
def test_a_run_has_the_bits_of_one_in_process(
    sync: str,
    client_strategy: str,
    transport: str,
    simulation: FlowerSimulation,
    tmp_path: Path,
    flower_run: None,
) -> None:
    ours = train(simulation, tmp_path / "model", sync, client_strategy, transport)
    assert same(ours, in_process(sync, client_strategy))


def test_of_flowers_strategies_federated_averaging_alone_is_what_is_built_in(
    flower_run: None,
) -> None:
    built_in, average, adam = (in_process("round", name) for name in ("", "FedAvg", "FedAdam"))
    assert same(average, built_in)
    assert not same(adam, built_in)
