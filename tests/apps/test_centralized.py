"""The plain loop, against one written in a line less."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from apps.image_classification.models import initial_model
from apps.image_classification.run_phases import run_phases

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

RunConfig = dict[str, bool | float | int | str]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_it_goes_through_the_pooled_data_in_batches(
    schedule: str, fake_grid: "type[FakeGrid]", tmp_path: Path
) -> None:
    config = AppConfig.from_run_config(
        {
            "method": "centralized",
            "max-train-examples": 70,
            "batch-size": 32,
            "num-server-rounds": 2,
            "learning-rate-schedule": schedule,
            "max-grad-norm": 1.0,
            "seed": 3,
            "out": str(tmp_path),
        }
    )
    images = load_images(config.data)
    result = run_phases(fake_grid({}), config, images)

    model = initial_model("small-cnn", images.spec, 3)
    inputs, labels = images.train_set().tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(6):
        order = np.random.default_rng([3, 1 + step // 3]).permutation(70)
        some = order[32 * (step % 3) :][:32]
        if schedule == "cosine":
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 6)) / 2
        loss = nn.functional.cross_entropy(model(inputs[some]), labels[some])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    trained = result.arrays.to_torch_state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-6)

    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(step["round"], step["step"]) for step in steps] == [
        (server_round, step) for server_round in (1, 2) for step in (1, 2, 3)
    ]
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["sampler"], summary["cut"]) == (
        "centralized",
        "none",
        "none",
    )
    assert (summary["num_clients"], summary["num_examples"], summary["steps"]) == (0, 70, 6)
    assert (summary["bytes_up"], summary["bytes_down"]) == (0, 0)
    metrics = result.train_metrics_clientapp[2]
    weighted = (32 * losses[3] + 32 * losses[4] + 6 * losses[5]) / 70
    assert metrics["loss"] == pytest.approx(weighted, rel=1e-5)
    assert (metrics["num-examples"], metrics["num-steps"]) == (70, 3)


def test_steps_of_a_round_are_bounded(fake_grid: "type[FakeGrid]") -> None:
    config = AppConfig.from_run_config(
        {
            "method": "centralized",
            "max-train-examples": 70,
            "batch-size": 16,
            "num-server-rounds": 1,
            "steps-per-round": 2,
        }
    )
    result = run_phases(fake_grid({}), config, load_images(config.data))
    assert result.train_metrics_clientapp[1]["num-steps"] == 2
