from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from torch import nn

from apps.image_classification.config import AppConfig
from apps.image_classification.image_spec import ImageSpec
from apps.image_classification.models import initial_model
from apps.image_classification.server_app import build_strategy, main, report
from flower_psl import ConfigError, CutError, Encodings, GlobalSampler, PslError, StreamSettings

if TYPE_CHECKING:
    from tests.conftest import FakeGrid

DIGITS = ImageSpec(num_channels=1, height=8, width=8, num_classes=10)


def model() -> nn.Module:
    return initial_model("small-cnn", DIGITS, seed=0)


def test_the_strategy_is_the_one_configured(tmp_path: Path) -> None:
    config = AppConfig.from_run_config(
        {
            "batch-size": 16,
            "seed": 4,
            "max-grad-norm": 2.0,
            "steps-per-round": 3,
            "label-smoothing": 0.1,
            "learning-rate-schedule": "cosine",
            "fraction-evaluate": 0.5,
            "min-available-nodes": 5,
            "node-timeout-s": 7,
            "step-timeout-s": 8,
            "transport": "messages",
            "stream-address": "0.0.0.0:9200",
            "stream-advertise": "server.example:9200",
            "stream-certificate-file": "/etc/psl/server.crt",
            "stream-key-file": "/etc/psl/server.key",
            "stream-root-certificates-file": "/etc/psl/ca.crt",
            "stream-reconnect-timeout-s": 20,
            "stream-max-frame-bytes": 10**6,
            "activation-encoding": "int8",
            "gradient-encoding": "bf16",
            "weight-encoding": "fp16",
            "out": str(tmp_path),
        }
    )
    strategy = build_strategy(config, model())
    assert strategy.sampler == GlobalSampler(batch_size=16, seed=4)
    assert isinstance(strategy.loss_fn, nn.CrossEntropyLoss)
    assert strategy.loss_fn.label_smoothing == 0.1
    assert (strategy.max_grad_norm, strategy.steps_per_round) == (2.0, 3)
    assert (strategy.fraction_evaluate, strategy.min_available_nodes) == (0.5, 5)
    assert (strategy.node_timeout_s, strategy.step_timeout_s) == (7.0, 8.0)
    assert strategy.transport == "messages"
    assert strategy.stream == StreamSettings(
        address="0.0.0.0:9200",
        advertise="server.example:9200",
        certificate_file="/etc/psl/server.crt",
        key_file="/etc/psl/server.key",
        root_certificates_file="/etc/psl/ca.crt",
        reconnect_timeout_s=20.0,
        max_frame_bytes=10**6,
    )
    assert strategy.encodings == Encodings(activations="int8", gradients="bf16", weights="fp16")
    assert (strategy.seed, strategy.model_name) == (4, "small-cnn")
    assert strategy.lr_scheduler_fn is not None
    assert strategy.recorder is not None


def test_plain_text_reaches_the_stream() -> None:
    config = AppConfig.from_run_config({"stream-plain-text": True})
    assert build_strategy(config, model()).stream == StreamSettings(plain_text=True)


def test_what_is_off_by_default_is_off() -> None:
    strategy = build_strategy(AppConfig(), model())
    assert strategy.max_grad_norm is None
    assert strategy.steps_per_round is None
    assert strategy.lr_scheduler_fn is None
    assert strategy.recorder is None


def test_a_cut_that_is_not_there_is_refused() -> None:
    with pytest.raises(CutError, match="block9"):
        build_strategy(AppConfig(cut="block9"), model())


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
