from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result

from apps.image_classification.config import AppConfig
from apps.image_classification.server_app import main, report
from flower_psl import ConfigError, CutError, PslError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid


def context(run_config: dict[str, str | int | float | bool]) -> Context:
    return Context(1, 0, {}, RecordDict(), run_config)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"model": "resnet19"}, ConfigError),
        ({"no-such-key": 1}, ConfigError),
        ({"dataset": "/no/such/folder"}, ConfigError),
        ({"cut": "block9"}, CutError),
    ],
)
def test_a_run_that_is_refused_leaves_no_results_of_another(
    tmp_path: Path,
    fake_grid: "type[FakeGrid]",
    setting: dict[str, str | int | float | bool],
    error: type[PslError],
) -> None:
    for name in ("summary.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("not a run's")
    with pytest.raises(error):
        main(fake_grid({}), context({"out": str(tmp_path), **setting}))
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "steps.jsonl"}
    assert (tmp_path / "steps.jsonl").read_text() == ""


def test_a_folder_that_the_configuration_refuses_is_not_touched(
    tmp_path: Path, fake_grid: "type[FakeGrid]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="out = 'runs'"):
        main(fake_grid({}), context({"out": "runs"}))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["summary.json"]


@pytest.mark.parametrize(("out", "files"), [("", "no files"), ("/tmp/run", "files in /tmp/run")])
def test_the_report_is_one_line_with_the_last_rounds_figures(out: str, files: str) -> None:
    result = Result(
        evaluate_metrics_serverapp={
            0: MetricRecord({"accuracy": 0.1, "loss": 2.3, "num-examples": 360}),
            2: MetricRecord({"accuracy": 0.91234, "loss": 0.3, "num-examples": 360}),
        },
        train_metrics_clientapp={n: MetricRecord({"num-steps": 20 + n}) for n in (1, 2)},
    )
    line = report(AppConfig(out=out), result)
    assert "\n" not in line
    assert "accuracy 0.9123, loss 0.3000 on 360 test examples after 2 rounds and 43 steps" in line
    assert files in line


def test_the_report_prefers_the_servers_evaluation_to_that_of_devices() -> None:
    def metrics(accuracy: float) -> MetricRecord:
        return MetricRecord({"accuracy": accuracy, "loss": 1.0, "num-examples": 9})

    both = Result(
        evaluate_metrics_serverapp={1: metrics(0.5)}, evaluate_metrics_clientapp={1: metrics(0.25)}
    )
    alone = Result(
        evaluate_metrics_serverapp={0: metrics(0.5)}, evaluate_metrics_clientapp={1: metrics(0.25)}
    )
    assert "accuracy 0.5000" in report(AppConfig(), both)
    assert "accuracy 0.2500" in report(AppConfig(method="local-only"), alone)
