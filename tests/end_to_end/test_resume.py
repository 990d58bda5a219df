"""A ServerApp that is killed in the middle of a real run, and the run started again."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simulations.flower_simulation import FlowerSimulation
from simulations.processes import processes
from simulations.restarts import timeless_steps
from tests.end_to_end.in_process import ROOT, train_in_process

pytestmark = pytest.mark.slow

NUM_CLIENTS = 3
TIMEOUT_S = 300.0
RunConfig = dict[str, bool | int | float | str]
# Every device trains its segment by itself, and one step is one exchange.
CONFIG: RunConfig = {
    "client-sync": "round",
    "server-update": "per-client-average",
    "num-server-rounds": 3,
    "steps-per-round": 20,
    "min-available-nodes": NUM_CLIENTS,
}


@pytest.fixture(scope="module")
def simulation() -> Iterator[FlowerSimulation]:
    with FlowerSimulation(ROOT) as running:
        yield running


def run(simulation: FlowerSimulation, config: RunConfig) -> tuple[str, str]:
    return simulation.run(config, num_supernodes=3, num_actors=1, timeout_s=TIMEOUT_S, quiet=True)


def kill_when(simulation: FlowerSimulation, there: Path, ended: Future[Any]) -> None:
    """Kill the ServerApp's process, and the devices with it, once a file is there."""
    deadline = time.monotonic() + TIMEOUT_S
    while not there.exists():
        assert not ended.done() and time.monotonic() < deadline, "it was not killed in time"
        time.sleep(0.01)
    [process] = processes(simulation.process_of("superlink"), "flwr-simulation")
    os.kill(process, signal.SIGKILL)


def test_a_killed_run_that_is_started_again_ends_with_the_same_bits(
    simulation: FlowerSimulation, tmp_path: Path
) -> None:
    whole, saved = tmp_path / "whole", tmp_path / "saved"
    train_in_process(CONFIG | {"out": str(whole)}, NUM_CLIENTS)
    checkpoints = tmp_path / "checkpoints"
    config = CONFIG | {
        "out": str(saved),
        "checkpoint-folder": str(checkpoints),
        "checkpoint-every-steps": 3,
        "state-dir": str(tmp_path / "devices"),
    }
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, simulation, config)
        kill_when(simulation, checkpoints / "round-2-step-4.safetensors", first)
        status, log = first.result()
    assert status.startswith("finished:failed"), log
    assert not (saved / "summary.json").exists()
    status, log = run(simulation, config)
    assert status == "finished:completed", log
    assert "resumed from" in log
    weights, expected = (
        load_file(saved / "model.safetensors"),
        load_file(whole / "model.safetensors"),
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert timeless_steps(saved) == timeless_steps(whole)
    summary = json.loads((saved / "summary.json").read_text())
    assert summary["steps"] == 60
