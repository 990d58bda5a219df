import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from flwr.app import MetricRecord

from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from apps.image_classification.models import initial_model
from apps.image_classification.phase_run import PhaseRun
from flower_psl import RunRecorder, StepRecord

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

STEP = StepRecord(
    server_round=1,
    step=1,
    loss=0.75,
    effective_batch_size=8,
    clients={3: 8},
    bytes_up=10,
    bytes_down=20,
    seconds={"total": 0.5},
)


def phase_run(grid: "FakeGrid", recorder: RunRecorder | None) -> PhaseRun:
    config = AppConfig(method="fedavg", num_server_rounds=1)
    images = load_images(config.data)
    return PhaseRun(
        grid=grid,
        config=config,
        phase=config.parsed_phases[0],
        images=images,
        model=initial_model("small-cnn", images.spec, 0),
        evaluate_fn=lambda server_round, arrays: MetricRecord(),
        recorder=recorder,
    )


@pytest.mark.parametrize(("loss", "recorded"), [(0.5, 0.5), (math.nan, None), (math.inf, None)])
def test_a_round_is_recorded_and_logged(
    loss: float,
    recorded: float | None,
    tmp_path: Path,
    fake_grid: "type[FakeGrid]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = RunRecorder(tmp_path)
    run = phase_run(fake_grid({}), recorder)
    metrics = MetricRecord({"accuracy": 0.25, "loss": loss})
    with caplog.at_level(logging.INFO, "flwr.psl"):
        run.start_records(num_clients=2, num_examples=8, transport="messages")
        run.record_round(0, metrics)
        run.record_step(STEP)
        run.record_round(1, metrics, steps=1, train_loss=0.75, seconds=2.0)
    assert "[ROUND 0/1] test loss" in caplog.text
    assert "[ROUND 1/1] train loss 0.7500, test loss" in caplog.text
    assert "test accuracy 0.2500, 1 steps in 2.0 s" in caplog.text
    recorder.finish({"weight": torch.ones(1)})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final_loss"] == recorded
    assert {key: summary[key] for key in ("method", "sampler", "cut", "bytes_up", "steps")} == {
        "method": "fedavg",
        "sampler": "none",
        "cut": "none",
        "bytes_up": 10,
        "steps": 1,
    }


def test_a_run_without_a_recorder_leaves_nothing(fake_grid: "type[FakeGrid]") -> None:
    run = phase_run(fake_grid({}), None)
    run.start_records(num_clients=2, num_examples=8, transport="messages")
    run.record_step(STEP)
    run.record_round(1, MetricRecord({"accuracy": 0.25, "loss": 1.0}))
    assert run.recorder is None
