"""Devices that train by themselves, through the real `flwr run`: the same bits everywhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simulations.flower_federation import RunConfig
from simulations.flower_simulation import FlowerSimulation
from tests.end_to_end.conftest import train_small_app
from tests.end_to_end.small_app import NUM_CLIENTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulation(small_app: Path) -> Iterator[FlowerSimulation]:
    with FlowerSimulation(small_app) as running:
        yield running


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in right
    )


@pytest.mark.parametrize(
    "config",
    [
        {"sync": "round", "client-strategy": "FedAdam", "transport": "messages"},
        {"sync": "none", "transport": "stream"},
    ],
    ids=lambda config: "-".join(config.values()),
)
def test_a_run_has_the_bits_of_one_in_process(
    config: RunConfig, simulation: FlowerSimulation, tmp_path: Path, flower_run: None
) -> None:
    out = tmp_path / "model"
    status, log = simulation.run(
        {**config, "out": str(out)},
        num_supernodes=NUM_CLIENTS,
        num_actors=2,
        timeout_s=240.0,
        quiet=True,
    )
    assert status == "finished:completed", log
    assert same(load_file(out), train_small_app(config))


def test_of_flowers_strategies_federated_averaging_alone_is_what_is_built_in(
    flower_run: None,
) -> None:
    # A strategy of Flower aggregates outside of Flower too.
    built_in, average, adam = (
        train_small_app({"sync": "round", "client-strategy": name})
        for name in ("", "FedAvg", "FedAdam")
    )
    assert same(average, built_in)
    assert not same(adam, built_in)
