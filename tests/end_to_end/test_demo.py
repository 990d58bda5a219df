"""`make demo`, without make."""

import json
from pathlib import Path

import pytest

from simulations.demo import demo

SUMMARY = {
    *("method", "sampler", "model", "cut", "num_clients", "num_examples", "rounds", "steps"),
    *("final_accuracy", "best_accuracy", "final_loss", "mean_effective_batch_size"),
    *("seconds", "steps_per_second", "bytes_up", "bytes_down", "transport", "refused"),
    *("accuracy_by_round", "failures", "inclusion", "not_seen", "redrawn"),
    *("sampler_details", "seed", "versions"),
}


@pytest.mark.slow
def test_the_demo_learns_digits_and_leaves_everything(tmp_path: Path) -> None:
    line = demo(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == SUMMARY
    assert summary["final_accuracy"] >= 0.95
    assert summary["rounds"] <= 10
    assert f"{summary['final_accuracy']:.4f}" in line
    assert str(tmp_path) in line
    steps = [json.loads(row) for row in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == summary["steps"]
    for picture in ("accuracy.png", "loss.png", "schedule.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
