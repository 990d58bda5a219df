"""The app on a SuperLink and two SuperNodes, with TLS and SuperNode authentication."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simulations.flower_deployment import FlowerDeployment

# On a busy machine the run over messages alone takes minutes.
pytestmark = [pytest.mark.slow(minutes=3), pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
SHORT: dict[str, bool | int | float | str] = {
    "num-server-rounds": 1,
    "steps-per-round": 2,
    "fraction-evaluate": 1.0,
    "seed": 5,
}


TRANSPORTS: dict[str, dict[str, bool | str]] = {
    "messages": {"transport": "messages"},
    "stream": {"transport": "stream", "stream-shared-memory": False},
    "memory": {"transport": "stream"},
}


def test_every_transport_ends_with_the_same_bits(tmp_path: Path) -> None:
    with FlowerDeployment(ROOT, num_supernodes=2) as deployment:
        for name, transport in TRANSPORTS.items():
            out = tmp_path / name
            config = SHORT | transport | {"out": str(out)}
            status, log = deployment.run(config, timeout_s=400.0, quiet=True)
            assert status == "finished:completed", log
            summary = json.loads((out / "summary.json").read_text())
            assert summary["transport"] == transport["transport"]
            assert ("2 of 2 nodes go through memory" in log) is (name == "memory")
    messages, *streams = (load_file(tmp_path / name / "model.safetensors") for name in TRANSPORTS)
    for stream in streams:
        assert set(messages) == set(stream)
        assert [name for name in messages if not torch.equal(messages[name], stream[name])] == []
