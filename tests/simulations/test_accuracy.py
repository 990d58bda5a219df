from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.accuracy import AccuracyJob, AccuracySettings, accuracy
from simulations.result_store import Row


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    summary = quick("accuracy")
    assert summary["largest_weight_difference"] <= 1e-9
    assert summary["parity_steps"] == 16  # a round has no more
    found = {row["method"]: row for row in summary["table"]}
    assert list(found) == ["cl", "gpsl", "fpls", "fls"]
    assert found["cl"]["accuracy"] > 90
    assert found["cl"]["difference"] == 0
    assert abs(found["gpsl"]["difference"]) <= 5
    for row in found.values():
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(row["accuracy"] - found["cl"]["accuracy"])
        assert len(row["seeds"].split()) == 3
    for name in ("steps", "mean_batch", "max_batch"):
        assert found["gpsl"][name] == found["cl"][name]
    assert found["gpsl"]["max_batch"] == 64
    assert found["fls"]["steps"] > found["fpls"]["steps"] > found["gpsl"]["steps"] == 16
    assert found["fls"]["mean_batch"] < found["fpls"]["mean_batch"] < found["gpsl"]["mean_batch"]


def _settings(out: Path, **changes: Any) -> AccuracySettings:
    small: dict[str, Any] = {
        "methods": ("gpsl",),
        "clients": (3,),
        "alpha": (1.0,),
        "examples": 60,
        "test_examples": 20,
        "batch_size": 30,
        "rounds": 1,
        "seeds": 2,
        "max_seeds": 2,
    }
    return AccuracySettings(out=out, **(small | changes))


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    whole = accuracy(_settings(tmp_path / "whole"))
    assert "after 2 steps in float64" in whole

    def stop_after_two(job: Any) -> list[Row]:
        done.append(job.seed)
        if len(done) == 3:
            raise KeyboardInterrupt
        return original(job)

    original = AccuracyJob.run
    monkeypatch.setattr(AccuracyJob, "run", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        accuracy(_settings(tmp_path / "stopped"))
    assert accuracy(_settings(tmp_path / "stopped")) == whole
    # CL and GPSL of seed 0, CL of seed 1 twice, GPSL of seed 1.
    assert done == [0, 0, 1, 1, 1]


def test_seeds_are_added_until_the_interval_is_narrow(tmp_path: Path) -> None:
    def seeds(half_width: float) -> int:
        out = tmp_path / str(half_width)
        accuracy(_settings(out, max_seeds=4, half_width=half_width))
        return (out / "results.jsonl").read_text().count('\\"method\\": \\"gpsl\\"')

    assert seeds(1e-9) == 4
    assert seeds(1e9) == 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--methods", "gpsl,nope"], ["'nope'", "choose from"]),
        (["--methods", "gpsl,gpsl"], ["gpsl", "each once"]),
        (["--alpha", "0"], ["alpha has 0.0", "above 0", "change that one"]),
        (["--alpha", "nan"], ["alpha has nan", "above 0"]),
        (["--alpha", ""], ["alpha is empty", "give one"]),
        (["--clients", "3,3"], ["3 twice", "give each once"]),
        (["--clients", "2000"], ["2000 clients", "1000", "take fewer"]),
        (["--batch-size", "2000"], ["batch_size is 2000", "1000", "choose batch_size"]),
        (["--batch-size", "many"], ["--batch-size", "'many'", "--help"]),
        (["--seeds", "1"], ["seeds is 1", "2 or more"]),
        (["--max-seeds", "2"], ["max_seeds is 2", "3 or more"]),
        (["--learning-rate", "0"], ["learning_rate is 0.0", "above 0"]),
        (["--half-width", "0"], ["half_width is 0.0", "above 0"]),
        (["--model", "vgg"], ["model is 'vgg'", "cnn, resnet18"]),
        (["--data", "mnist"], ["data is 'mnist'", "digits, cifar10"]),
        (["--workers", "0"], ["workers is 0", "1 or more"]),
        (["--methods", "straggler:0.01"], ["participation is 0.01", "choose participation"]),
    ],
)
def test_bad_input_takes_one_line_and_code_2(
    options: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["accuracy", "--quick", "--out", str(tmp_path / "out"), *options]
    try:
        code: object = main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()
