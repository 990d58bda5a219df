"""Devices that train by themselves, through the real `flwr run`: the same bits everywhere."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file
from torch import Tensor

from flower_psl.transport import InProcessTransport
from simulations.flower_federation import RunConfig
from simulations.flower_simulation import FlowerSimulation
from tests.end_to_end.conftest import PROJECT
from tests.end_to_end.small_app import NUM_CLIENTS, build_model, make_client, make_strategy

pytestmark = pytest.mark.slow

CONFIG: RunConfig = tomllib.loads(PROJECT)["tool"]["flwr"]["app"]["config"]


@pytest.fixture(scope="module")
def simulation(small_app: Path) -> Iterator[FlowerSimulation]:
    with FlowerSimulation(small_app) as running:
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
    config = {**CONFIG, "sync": sync, "client-strategy": client_strategy}
    result = make_strategy(config).run_over(
        InProcessTransport({key: make_client(key) for key in range(NUM_CLIENTS)}),
        ArrayRecord(build_model().state_dict()),
        num_rounds=int(CONFIG["num-rounds"]),
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
    [("round", "FedAdam", "messages"), ("none", "", "stream")],
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
