import platform
from dataclasses import replace
from importlib import metadata

import pytest

from flower_psl.telemetry import RoundRecord, RunInfo, StepRecord
from flower_psl.telemetry.run_summary import RunSummary

KEYS = [
    "method",
    "sampler",
    "model",
    "cut",
    "num_clients",
    "num_examples",
    "rounds",
    "steps",
    "final_accuracy",
    "best_accuracy",
    "final_loss",
    "accuracy_by_round",
    "mean_effective_batch_size",
    "seconds",
    "steps_per_second",
    "bytes_up",
    "bytes_down",
    "transport",
    "refused",
    "failures",
    "inclusion",
    "not_seen",
    "redrawn",
    "sampler_details",
    "seed",
    "versions",
]

INFO = RunInfo(
    method="psl",
    sampler="gpsl",
    model="small-cnn",
    cut="block1",
    num_clients=2,
    num_examples=12,
    rounds=2,
    transport="in-process",
    seed=7,
    sampler_details={"participation": 0.5},
)


def step(server_round: int, step: int, clients: dict[int, int], total_s: float) -> StepRecord:
    return StepRecord(
        server_round=server_round,
        step=step,
        loss=1.0,
        effective_batch_size=sum(clients.values()),
        clients=clients,
        bytes_up=100,
        bytes_down=10,
        seconds={"forward": total_s / 2, "total": total_s},
    )


def after_round(server_round: int, accuracy: float | None, loss: float | None) -> RoundRecord:
    return RoundRecord(
        server_round=server_round,
        steps=2,
        train_loss=1.0,
        accuracy=accuracy,
        loss=loss,
        seconds=1.0,
    )


def full_summary() -> RunSummary:
    summary = RunSummary(INFO)
    summary.add_round(after_round(0, 0.1, 2.5))
    summary.add_step(step(1, 1, {0: 5, 1: 3}, 0.5))
    summary.add_step(step(1, 2, {0: 4}, 0.25))
    summary.add_round(after_round(1, 0.9, 0.5))
    summary.add_step(step(2, 1, {0: 4, 1: 4}, 0.25))
    summary.add_round(after_round(2, 0.8, 0.75))
    return summary


def test_golden_summary() -> None:
    content = full_summary().to_json(seconds=4.0, refused={"wrong token": 2, "malformed frame": 1})
    versions = content.pop("versions")
    assert isinstance(versions, dict)
    assert list(versions) == ["python", "flower-psl", "flwr", "torch", "numpy"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == metadata.version("torch")
    assert content == {
        "method": "psl",
        "sampler": "gpsl",
        "model": "small-cnn",
        "cut": "block1",
        "num_clients": 2,
        "num_examples": 12,
        "rounds": 2,
        "steps": 3,
        "final_accuracy": 0.8,
        "best_accuracy": 0.9,
        "final_loss": 0.75,
        "accuracy_by_round": [0.1, 0.9, 0.8],
        "mean_effective_batch_size": 20 / 3,
        "seconds": 4.0,
        "steps_per_second": 3.0,
        "bytes_up": 300,
        "bytes_down": 30,
        "transport": "in-process",
        "refused": {"malformed frame": 1, "wrong token": 2},
        "failures": {},
        "inclusion": {},
        "not_seen": 0,
        "redrawn": 0,
        "sampler_details": {"participation": 0.5},
        "seed": 7,
    }


def test_keys_are_in_reading_order() -> None:
    assert list(full_summary().to_json(seconds=1.0)) == KEYS


def test_what_never_was_is_none() -> None:
    content = RunSummary(INFO).to_json(seconds=1.0)
    assert content["refused"] == {}
    assert list(content) == KEYS
    assert {name for name, value in content.items() if value is None} == {
        "final_accuracy",
        "best_accuracy",
        "final_loss",
        "mean_effective_batch_size",
        "steps_per_second",
    }


def test_what_clients_failed_in_is_there_with_how_much_of_their_data_was_used() -> None:
    summary = RunSummary(INFO)
    summary.add_round(after_round(0, None, None))
    for share in (1.0, 0.5):
        part = after_round(1, None, None)
        summary.add_round(
            replace(part, not_seen=3, redrawn=8, inclusion={0: 1.0, 10: share}, bytes_up=7)
        )
    content = summary.to_json(1.0, failures={10: {"unusable": 1, "late": 2}})
    assert content["failures"] == {"10": {"late": 2, "unusable": 1}}
    assert content["inclusion"] == {"0": 1.0, "10": 0.75}
    assert (content["not_seen"], content["redrawn"], content["bytes_up"]) == (6, 16, 14)


def test_final_is_the_last_that_was_evaluated() -> None:
    summary = RunSummary(INFO)
    summary.add_round(after_round(1, 0.5, 1.5))
    summary.add_round(after_round(2, None, None))
    content = summary.to_json(seconds=1.0)
    assert (content["final_accuracy"], content["final_loss"]) == (0.5, 1.5)
    assert content["accuracy_by_round"] == [0.5, None]


def test_an_accuracy_of_zero_is_no_missing_one() -> None:
    summary = RunSummary(INFO)
    summary.add_round(after_round(1, 0.0, 0.0))
    content = summary.to_json(seconds=1.0)
    assert [content[name] for name in ("final_accuracy", "best_accuracy", "final_loss")] == [
        0.0
    ] * 3


def test_first_schedule_is_a_copy_of_the_first_round() -> None:
    clients = {0: 5, 1: 3}
    summary = RunSummary(INFO)
    summary.add_step(step(4, 1, clients, 0.5))
    summary.add_step(step(5, 1, {0: 8}, 0.5))
    clients[0] = 99
    assert summary.first_schedule == [{0: 5, 1: 3}]


def test_a_package_that_is_not_installed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    versions = RunSummary(INFO).to_json(seconds=1.0)["versions"]
    assert isinstance(versions, dict)
    assert versions["flower-psl"] == "unknown"
