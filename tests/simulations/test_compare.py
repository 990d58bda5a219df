import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from apps.image_classification.methods import METHODS as METHODS_OF_THE_APP
from simulations.__main__ import main
from simulations.compare import METHODS


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    summary = quick("compare", "--examples", "600")
    found = {row["method"]: row for row in summary["table"]}
    assert tuple(found) == METHODS
    assert found["gpsl"]["accuracy"] > 80
    assert all(0 < row["accuracy"] <= 100 for row in found.values())
    # A device has a small part of the work and traffic that it has with the whole model.
    assert 20 * found["gpsl"]["GFLOP_a_round"] < found["fedavg"]["GFLOP_a_round"]
    assert found["gpsl"]["device_MB"] < found["fedavg"]["device_MB"]
    for name in ("MB_a_round", "GFLOP_a_round", "device_MB"):
        assert found["centralized"][name] == 0
    # They train the same way, and differ in what the server makes of it.
    for name in ("MB_a_round", "s_a_round", "GFLOP_a_round", "device_MB"):
        assert found["krum"][name] == found["fedmedian"][name]


def test_the_methods_are_those_of_the_app() -> None:
    assert METHODS == tuple(METHODS_OF_THE_APP)


class FakeSimulation:
    """Leaves the records of the first methods only, then fails, if `methods` is given."""

    configs: list[dict[str, Any]]
    methods: int | None

    def __init__(self, app: Path) -> None:
        assert (app / "pyproject.toml").is_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, config: dict[str, Any], **options: object) -> tuple[str, str]:
        self.configs.append(config)
        names = [phase.strip().partition(":")[0] for phase in config["phases"].split(",")]
        for name in names[: self.methods]:
            # One method likes a high rate and the others a low one.
            accuracy = config["learning-rate"] * (1 if name == "gpsl" else -1)
            _leave_records(Path(config["out"], name), 0.5 + accuracy)
        return "finished:failed" if self.methods else "finished:completed", ""


def _leave_records(folder: Path, accuracy: float) -> None:
    folder.mkdir()
    step = {"round": 1, "clients": {"0": 2}, "effective_batch_size": 2}
    needs = (
        *("parameters", "fixed_bytes", "bytes_per_example", "local_batch_size"),
        *("flops_per_example", "server_flops_per_example"),
        *("traffic_bytes_per_example", "exchanges_per_step"),
    )
    for name, content in {
        "summary.json": {
            "num_clients": 1,
            "steps": 1,
            "accuracy_by_round": [0.1, accuracy],
        },
        "steps.jsonl": step | {"bytes_up": 10, "bytes_down": 20},
        "device.json": dict.fromkeys(needs, 1),
    }.items():
        (folder / name).write_text(json.dumps(content) + "\n")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> type[FakeSimulation]:
    monkeypatch.setattr("simulations.compare.FlowerSimulation", FakeSimulation)
    FakeSimulation.configs, FakeSimulation.methods = [], None
    return FakeSimulation


def test_one_run_of_the_app_a_seed_and_rate(app: type[FakeSimulation], tmp_path: Path) -> None:
    words = ["compare", "--methods", "gpsl,krum", "--seeds", "2", "--rounds", "1"]
    assert main([*words, "--learning-rates", "0.1,0.2", "--out", str(tmp_path)]) == 0
    assert [(config["seed"], config["learning-rate"]) for config in app.configs] == [
        (0, 0.1),
        (0, 0.2),
        (1, 0.1),
        (1, 0.2),
    ]
    assert all(config["compare"] for config in app.configs)
    assert {config["phases"] for config in app.configs} == {"gpsl:1, krum:1"}
    # The better rate of each only: a row a method and seed.
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["method"], row["seed"], row["learning_rate"]) for row in rows] == [
        ("gpsl", "0", "0.2"),
        ("krum", "0", "0.1"),
        ("gpsl", "1", "0.2"),
        ("krum", "1", "0.1"),
    ]
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {"rounds", "bytes", "time", "work", "memory"}


def test_a_stopped_run_goes_on(
    app: type[FakeSimulation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--quick", "--methods", "gpsl,psl,sl", "--out", str(tmp_path)]
    app.methods = 2
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "finished:failed" in error
    assert "Run it again to go on" in error
    app.methods = None
    assert main(words) == 0
    assert [config["phases"] for config in app.configs] == ["gpsl:3, psl:3, sl:3", "sl:3"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--methods", "gpsl,nope"], ["'nope'", "one of gpsl"]),
        (["--methods", "gpsl,gpsl"], ["'gpsl' twice", "give each once"]),
        (["--data", "mnist"], ["data is 'mnist'", "digits, cifar10"]),
        (["--clients", "1"], ["clients is 1", "2 or more"]),
        (["--rounds", "0"], ["rounds is 0", "1 or more"]),
        (["--seeds", "0"], ["seeds is 0", "1 or more"]),
        (["--alpha", "0"], ["alpha is 0.0", "above 0"]),
        (["--learning-rates", "0.1,nan"], ["learning_rates has nan", "above 0"]),
        (["--target", "1.5"], ["target is 1.5", "(0, 1]"]),
        (["--device-gigaflops", "0"], ["device_gigaflops is 0.0", "above 0"]),
        (["--latency-s", "-1"], ["latency_s is -1.0", "0.0 or more"]),
    ],
)
def test_bad_input_takes_one_line_and_code_2(
    options: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--quick", "--out", str(tmp_path / "out"), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()
