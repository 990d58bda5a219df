"""Methods of every kind, one after the other, in a single `flwr run`."""

import json
from pathlib import Path

import pytest

from simulations.flower_simulation import FlowerSimulation

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NUM_CLIENTS = 5
PHASES = "fedavg:1, gpsl:2, splitfed-v1:1, fedadam:1, centralized:1, local-only:2"


def test_phases_of_every_kind_are_one_run(tmp_path: Path) -> None:
    with FlowerSimulation(ROOT) as simulation:
        status, log = simulation.run(
            {
                "phases": PHASES,
                "dirichlet-alpha": 1.0,
                "min-available-nodes": NUM_CLIENTS,
                "out": str(tmp_path),
            },
            num_supernodes=NUM_CLIENTS,
            num_actors=2,
            timeout_s=240.0,
            quiet=True,
        )
    assert status == "finished:completed", log
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["rounds"]) == (PHASES, 8)
    accuracies = summary["accuracy_by_round"]
    assert len(accuracies) == 9
    # Split learning goes on from what federated averaging has left.
    assert accuracies[0] < 0.3
    assert accuracies[1] < accuracies[3]
    assert accuracies[3] > 0.6
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(step["round"] for step in steps)) == list(range(1, 9))
    whole_model = [step["bytes_up"] for step in steps if step["round"] in (1, 5)]
    assert len(whole_model) == 2
    assert min(whole_model) > NUM_CLIENTS * 4 * 90_000  # a model of 95,000 numbers each
    assert all(step["bytes_up"] < 1000 for step in steps if step["round"] in (6, 7, 8))
