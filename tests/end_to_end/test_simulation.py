"""The app through the real `flwr run`: same bits, and failures that end a run at once."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simulations.flower_simulation import FlowerSimulation
from tests.end_to_end.in_process import ROOT, train_in_process

pytestmark = pytest.mark.slow

NUM_CLIENTS = 5
TIMEOUT_S = 240.0
RunConfig = dict[str, bool | int | float | str]

# A client segment with BatchNorm and with stochastic depth: merged statistics and random draws
# must not depend on the process that computed them.
SHORT: RunConfig = {
    "model": "efficientnet_b0",
    "cut": "features.3",
    "image-mode": "RGB",
    "image-size": 32,
    "batch-size": 16,
    "num-server-rounds": 2,
    "steps-per-round": 3,
    "min-available-nodes": NUM_CLIENTS,
    "fraction-evaluate": 0.5,
    "seed": 3,
    # Beside other tests, on two cores, actors take their time to start.
    "stream-connect-timeout-s": 180.0,
}
ACTORS = {"messages": 1, "stream": 2}


@pytest.fixture(scope="module")
def simulation() -> Iterator[FlowerSimulation]:
    with FlowerSimulation(ROOT) as running:
        yield running


def run(
    simulation: FlowerSimulation, config: Mapping[str, bool | int | float | str], actors: int
) -> tuple[str, str]:
    return simulation.run(
        config, num_supernodes=NUM_CLIENTS, num_actors=actors, timeout_s=TIMEOUT_S, quiet=True
    )


def test_same_bits_in_process_over_messages_and_over_the_stream(
    simulation: FlowerSimulation, tmp_path: Path
) -> None:
    expected = train_in_process(SHORT, NUM_CLIENTS).arrays.to_torch_state_dict()
    for transport, actors in ACTORS.items():
        out = tmp_path / transport
        config = SHORT | {"out": str(out), "transport": transport}
        status, log = run(simulation, config, actors)
        assert status == "finished:completed", log
        weights = load_file(out / "model.safetensors")
        assert set(weights) == set(expected)
        different = [name for name in expected if not torch.equal(weights[name], expected[name])]
        assert different == [], f"{transport}, {actors} actors"
        summary = json.loads((out / "summary.json").read_text())
        assert summary["transport"] == transport
        assert summary["num_clients"] == NUM_CLIENTS
        assert summary["steps"] == 6


def test_a_failing_run_says_why_and_leaves_no_summary(
    simulation: FlowerSimulation, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text("of an earlier run")
    # A device finds it out.
    wrong: RunConfig = {"partitioner": "pathological", "num-classes-per-partition": 11}
    status, log = run(simulation, wrong | {"out": str(tmp_path)}, actors=1)
    assert status.startswith("finished:failed"), log
    assert "num-classes-per-partition = 11" in log
    assert not (tmp_path / "summary.json").exists()
