import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flower_psl.errors import CheckpointError, ConfigError, PslError
from flower_psl.telemetry import RoundRecord, RunInfo, RunRecorder, StepRecord, run_recorder

ALL_FILES = {
    "summary.json",
    "steps.jsonl",
    "model.safetensors",
    "accuracy.png",
    "loss.png",
    "schedule.png",
}

INFO = RunInfo(
    method="psl",
    sampler="gpsl",
    model="small-cnn",
    cut="block1",
    num_clients=2,
    num_examples=8,
    rounds=1,
    transport="in-process",
    seed=7,
)
STEP = StepRecord(
    server_round=1,
    step=1,
    loss=0.5,
    effective_batch_size=8,
    clients={0: 5, 1: 3},
    bytes_up=100,
    bytes_down=10,
    seconds={"total": 0.5},
)
ROUND = RoundRecord(server_round=1, steps=1, train_loss=0.5, accuracy=0.75, loss=0.25, seconds=1.0)
UNEVALUATED = RoundRecord(
    server_round=1, steps=1, train_loss=0.5, accuracy=None, loss=None, seconds=1.0
)
MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def record_run(recorder: RunRecorder, last_round: RoundRecord = ROUND) -> Path:
    recorder.start(INFO)
    recorder.record_step(STEP)
    recorder.record_round(last_round)
    return recorder.finish(MODEL, {"wrong token": 2})


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    times = iter([100.0, 104.5])
    summary = record_run(RunRecorder(out, clock=lambda: next(times)))
    assert names(out) == ALL_FILES
    assert summary == out / "summary.json"
    content = json.loads(summary.read_text(encoding="utf-8"))
    assert (content["seconds"], content["steps"], content["final_accuracy"]) == (4.5, 1, 0.75)
    assert content["refused"] == {"wrong token": 2}
    assert (out / "steps.jsonl").read_text(encoding="utf-8") == (
        '{"round": 1, "step": 1, "loss": 0.5, "effective_batch_size": 8, '
        '"clients": {"0": 5, "1": 3}, "bytes_up": 100, "bytes_down": 10, '
        '"seconds": {"total": 0.5}, "client_seconds": {}, "plan": 0, "redraws": 0, "failed": {}}\n'
    )


def test_model_is_read_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    model = {
        "whole": base,
        "tied": base,
        "strided": base.T,
        "part": base[1],
        "parameter": torch.nn.Parameter(base.double()),
        "count": torch.tensor(3),
    }
    recorder = RunRecorder(tmp_path)
    recorder.start(INFO)
    recorder.record_round(ROUND)
    recorder.finish(model)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == model.keys()
    for name, tensor in model.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))


def test_never_evaluated_leaves_out_accuracy_only(tmp_path: Path) -> None:
    summary = record_run(RunRecorder(tmp_path), UNEVALUATED)
    assert names(tmp_path) == ALL_FILES - {"accuracy.png"}
    content = json.loads(summary.read_text(encoding="utf-8"))
    assert (content["final_accuracy"], content["final_loss"]) == (None, None)


def test_a_run_without_rounds_has_a_summary(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start(RunInfo(**{**INFO.to_json(), "rounds": 0}))  # type: ignore[arg-type]
    recorder.finish(MODEL)
    assert names(tmp_path) == {"summary.json", "steps.jsonl", "model.safetensors"}


def test_steps_reach_the_disk_at_a_round_end(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.start(INFO)
        recorder.record_step(STEP)
        recorder.record_round(ROUND)
        lines = (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1


def test_start_removes_only_files_of_a_recorder(tmp_path: Path) -> None:
    record_run(RunRecorder(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.png").write_text("mine")
    with RunRecorder(tmp_path) as recorder:
        recorder.start(INFO)
        assert names(tmp_path) == {"steps.jsonl", "notes.txt", "other.png"}
        assert (tmp_path / "steps.jsonl").read_text() == ""


def test_a_failing_run_leaves_its_steps_and_no_summary(tmp_path: Path) -> None:
    record_run(RunRecorder(tmp_path))
    with pytest.raises(RuntimeError, match="client died"), RunRecorder(tmp_path) as recorder:
        recorder.start(INFO)
        recorder.record_step(STEP)
        raise RuntimeError("client died")
    assert names(tmp_path) == {"steps.jsonl"}
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 1


def test_summary_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def fail(source: Path, target: Path) -> None:
        seen.append(names(tmp_path))
        assert json.loads(Path(source).read_text())["steps"] == 1
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        record_run(RunRecorder(tmp_path))
    assert seen == [ALL_FILES - {"summary.json"} | {"summary.json.tmp"}]
    assert names(tmp_path) == ALL_FILES - {"summary.json"}


def test_a_model_that_cannot_be_written_leaves_no_summary(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start(INFO)
    recorder.record_round(ROUND)
    with pytest.raises(NotImplementedError):
        recorder.finish({"weight": torch.empty(2, device="meta")})
    assert names(tmp_path) == {"steps.jsonl"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match=f"out is '{out}', but .*; .*folder. Name a folder"):
        RunRecorder(out).start(INFO)


def test_a_recorder_serves_one_run_after_the_other(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    record_run(recorder)
    summary = record_run(recorder)
    assert json.loads(summary.read_text())["steps"] == 1


def test_calls_outside_a_run_are_refused(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    rule = rf"no run is being recorded in {tmp_path}; .*Call start\(\) first"
    for _ in range(2):  # before the first run, and after it
        with pytest.raises(PslError, match=rf"record_step\(\) .*{rule}"):
            recorder.record_step(STEP)
        with pytest.raises(PslError, match=rf"record_round\(\) .*{rule}"):
            recorder.record_round(ROUND)
        with pytest.raises(PslError, match=rf"finish\(\) .*{rule}"):
            recorder.finish(MODEL)
        record_run(recorder)


def test_a_second_start_is_refused(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.start(INFO)
        with pytest.raises(PslError, match=rf"recorded in {tmp_path}; .*one run at a time.*Call"):
            recorder.start(INFO)


def test_a_run_that_is_not_complete_cannot_finish(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.start(INFO)
        with pytest.raises(PslError, match=r"after round 0 of 1; .*complete run. Record the last"):
            recorder.finish(MODEL)
        recorder.record_round(ROUND)
        recorder.finish(MODEL)
    assert "summary.json" in names(tmp_path)


def test_close_may_be_repeated(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start(INFO)
    recorder.close()
    recorder.close()
    assert names(tmp_path) == {"steps.jsonl"}


def test_preparing_removes_an_earlier_run_before_the_next_one_starts(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    RunRecorder(tmp_path).prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "steps.jsonl"]


def steps_of(out: Path) -> list[int]:
    lines = (out / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_resumed_run_leaves_what_one_that_was_never_stopped_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules: list[object] = []
    monkeypatch.setattr(run_recorder, "draw_rounds", lambda rounds, out: [])
    monkeypatch.setattr(run_recorder, "draw_schedule", lambda steps, out: schedules.append(steps))
    steps = [replace(STEP, step=number, loss=0.1 * number) for number in range(1, 6)]
    times = iter([100.0, 103.0, 500.0, 501.5, 0.0, 4.5])
    clock = partial(next, times)
    recorder = RunRecorder(tmp_path, clock=clock)
    recorder.start(INFO)
    for record in steps[:3]:
        recorder.record_step(record)
    state = recorder.state()
    recorder.record_step(steps[3])  # not in the state: it will come again
    recorder.close()
    resumed = RunRecorder(tmp_path, clock=clock)
    resumed.resume(INFO, state)
    for record in steps[3:]:
        resumed.record_step(record)
    resumed.record_round(ROUND)
    resumed.finish(MODEL)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    whole = RunRecorder(tmp_path / "whole", clock=clock)
    whole.start(INFO)
    for record in steps:
        whole.record_step(record)
    whole.record_round(ROUND)
    whole.finish(MODEL)
    assert schedules[0] == schedules[1] == [{0: 5, 1: 3}] * 5
    for name in ("steps.jsonl", "summary.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_resumed_run_has_the_rounds_before(tmp_path: Path) -> None:
    info = replace(INFO, rounds=2)
    recorder = RunRecorder(tmp_path)
    recorder.start(info)
    recorder.record_step(STEP)
    recorder.record_round(ROUND)
    state = recorder.state()
    recorder.close()
    recorder.resume(info, state)
    recorder.record_round(replace(UNEVALUATED, server_round=2))
    summary = json.loads(recorder.finish(MODEL).read_text(encoding="utf-8"))
    assert (summary["best_accuracy"], summary["steps"]) == (0.75, 1)


def test_resuming_removes_results_but_no_steps(tmp_path: Path) -> None:
    record_run(RunRecorder(tmp_path))
    RunRecorder(tmp_path).prepare(keep_steps=True)
    assert names(tmp_path) == {"steps.jsonl"}
    assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize("there", ["", '{"round": 1, "step"'])
def test_steps_that_are_missing_are_refused(there: str, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start(INFO)
    recorder.record_step(STEP)
    state = recorder.state()
    recorder.close()
    (tmp_path / "steps.jsonl").write_text(there)
    with pytest.raises(
        CheckpointError, match=rf"has {len(there)} bytes; .*had written \d+ .*Bring"
    ):
        recorder.resume(INFO, state)


@pytest.mark.parametrize("line", ["[]", "{}", '{"round": 1, "step": 2}', "nonsense", '{"x": 1}'])
def test_lines_that_are_no_steps_are_refused_by_number(line: str, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start(INFO)
    recorder.record_step(STEP)
    state = recorder.state()
    recorder.close()
    (tmp_path / "steps.jsonl").write_text(f"{line}\n".ljust(1000))
    with pytest.raises(CheckpointError, match=r"steps.jsonl, line 1: .*not the record .*Bring"):
        recorder.resume(INFO, state)
