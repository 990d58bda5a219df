import json
from pathlib import Path

import pytest
import torch

from apps.image_classification.phase_recorder import PhaseRecorder
from flower_psl import PslError, RoundRecord, RunInfo, StepRecord

INFO = RunInfo(
    method="psl",
    sampler="GPSL",
    model="small-cnn",
    cut="block1",
    num_clients=3,
    num_examples=90,
    rounds=2,
    transport="messages",
    seed=7,
)


def step(server_round: int) -> StepRecord:
    return StepRecord(
        server_round=server_round,
        step=1,
        loss=1.0,
        effective_batch_size=3,
        clients={0: 3},
        bytes_up=5,
        bytes_down=6,
        seconds={"total": 1.0},
    )


def a_round(server_round: int, accuracy: float) -> RoundRecord:
    return RoundRecord(
        server_round=server_round,
        steps=1,
        train_loss=1.0,
        accuracy=accuracy,
        loss=1.0,
        seconds=1.0,
    )


def test_phases_are_recorded_as_one_run_with_rounds_numbered_through(tmp_path: Path) -> None:
    recorder = PhaseRecorder(tmp_path, {"method": "a:1, b:2", "rounds": 3})
    for rounds_before, rounds in ((0, 1), (1, 2)):
        recorder.rounds_before = rounds_before
        recorder.prepare()
        recorder.start(INFO)
        recorder.record_round(a_round(0, 0.1))
        for server_round in range(1, rounds + 1):
            recorder.record_step(step(server_round))
            recorder.record_round(a_round(server_round, 0.5))
        path = recorder.finish({}, {"wrong token": rounds}, {4: {"late": rounds}})
        recorder.close()
        assert path == tmp_path / "summary.json"
        assert not path.exists()
    assert recorder.finish_run({"weight": torch.ones(1)}) == path
    recorder.close_run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["refused"] == {"wrong token": 3}
    assert summary["failures"] == {"4": {"late": 3}}
    assert summary["accuracy_by_round"] == [0.1, 0.5, 0.5, 0.5]
    assert {key: summary[key] for key in ("method", "rounds", "sampler", "steps", "seed")} == {
        "method": "a:1, b:2",
        "rounds": 3,
        "sampler": "GPSL",
        "steps": 3,
        "seed": 7,
    }
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [step["round"] for step in steps] == [1, 2, 3]


def test_a_run_is_complete_with_all_its_phases_only(tmp_path: Path) -> None:
    recorder = PhaseRecorder(tmp_path, {"rounds": 2})
    recorder.prepare()
    recorder.start(INFO)
    recorder.record_round(a_round(0, 0.1))
    recorder.record_round(a_round(1, 0.1))
    recorder.finish({})
    with pytest.raises(PslError, match="after round 1 of 2"):
        recorder.finish_run({})
    recorder.close_run()
    assert not (tmp_path / "summary.json").exists()
