"""A SuperLink and two SuperNodes, with TLS and SuperNode authentication."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simulations.flower_deployment import FlowerDeployment
from simulations.flower_federation import RunConfig
from tests.end_to_end.conftest import train_small_app
from tests.end_to_end.small_app import NUM_CLIENTS

# Every message to a device starts a process there.
pytestmark = [pytest.mark.slow(minutes=3), pytest.mark.timeout(1200)]

SHORT: RunConfig = {"num-rounds": 1, "steps-per-round": 2}
TRANSPORTS: dict[str, RunConfig] = {
    "messages": {"transport": "messages"},
    "stream": {"transport": "stream", "shared-memory": False},
    "memory": {"transport": "stream"},
}


def test_every_transport_ends_with_the_bits_of_a_run_in_process(
    small_app: Path, tmp_path: Path
) -> None:
    with FlowerDeployment(small_app, NUM_CLIENTS) as deployment:
        for name, transport in TRANSPORTS.items():
            config = {**SHORT, **transport, "out": str(tmp_path / name)}
            status, log = deployment.run(config, timeout_s=400.0, quiet=True)
            assert status == "finished:completed", log
            assert f"over {transport['transport']}" in log
            assert ("2 of 2 nodes go through memory" in log) is (name == "memory")
    expected = train_small_app(SHORT)
    for name in TRANSPORTS:
        weights = load_file(tmp_path / name)
        assert set(weights) == set(expected)
        different = [key for key in expected if not torch.equal(weights[key], expected[key])]
        assert different == [], name
