"""The app on a SuperLink and two SuperNodes, with TLS and SuperNode authentication."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simulations.flower_deployment import FlowerDeployment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHORT: dict[str, bool | int | float | str] = {
    "num-server-rounds": 1,
    "steps-per-round": 2,
    "fraction-evaluate": 1.0,
    "seed": 5,
}


def test_messages_and_stream_end_with_the_same_bits(tmp_path: Path) -> None:
    with FlowerDeployment(ROOT, num_supernodes=2) as deployment:
        for transport in ("messages", "stream"):
            out = tmp_path / transport
            config = SHORT | {"transport": transport, "out": str(out)}
            status, log = deployment.run(config, timeout_s=300.0, quiet=True)
            assert status == "finished:completed", log
            assert json.loads((out / "summary.json").read_text())["transport"] == transport
    messages, stream = (
        load_file(tmp_path / transport / "model.safetensors")
        for transport in ("messages", "stream")
    )
    assert set(messages) == set(stream)
    assert [name for name in messages if not torch.equal(messages[name], stream[name])] == []
