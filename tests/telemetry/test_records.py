import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.telemetry import RoundRecord, RunInfo, StepRecord


def step_record(
    loss: float = 0.5,
    seconds: Mapping[str, float] | None = None,
    client_seconds: Mapping[int, float] | None = None,
) -> StepRecord:
    return StepRecord(
        server_round=2,
        step=3,
        loss=loss,
        effective_batch_size=8,
        clients={0: 5, 7: 3},
        bytes_up=1024,
        bytes_down=512,
        seconds={"forward": 0.25, "total": 1.5} if seconds is None else seconds,
        client_seconds={3: 0.125} if client_seconds is None else client_seconds,
        plan=1,
        redraws=2,
        failed={7: "it is late"},
    )


def round_record(
    train_loss: float | None = 0.75,
    accuracy: float | None = 0.5,
    loss: float | None = 1.25,
    seconds: float = 2.0,
) -> RoundRecord:
    return RoundRecord(
        server_round=1,
        steps=4,
        train_loss=train_loss,
        accuracy=accuracy,
        loss=loss,
        seconds=seconds,
        not_seen=3,
        redrawn=8,
        inclusion={0: 0.75},
        bytes_up=64,
        bytes_down=32,
    )


def test_step_record_is_this_line() -> None:
    assert json.dumps(step_record().to_json()) == (
        '{"round": 2, "step": 3, "loss": 0.5, "effective_batch_size": 8, '
        '"clients": {"0": 5, "7": 3}, "bytes_up": 1024, "bytes_down": 512, '
        '"seconds": {"forward": 0.25, "total": 1.5}, "client_seconds": {"3": 0.125}, '
        '"plan": 1, "redraws": 2, "failed": {"7": "it is late"}}'
    )


def test_round_record_is_this_line() -> None:
    assert json.dumps(round_record().to_json()) == (
        '{"round": 1, "steps": 4, "train_loss": 0.75, "accuracy": 0.5, "loss": 1.25, '
        '"seconds": 2.0, "not_seen": 3, "redrawn": 8, "inclusion": {"0": 0.75}, '
        '"bytes_up": 64, "bytes_down": 32}'
    )


def test_round_record_keeps_none() -> None:
    record = round_record(train_loss=None, accuracy=None, loss=None)
    assert [record.to_json()[name] for name in ("train_loss", "accuracy", "loss")] == [None] * 3


def test_run_info_has_its_own_names() -> None:
    info = RunInfo(
        method="psl",
        sampler="gpsl",
        model="small-cnn",
        cut="block1",
        num_clients=10,
        num_examples=1437,
        rounds=3,
        transport="in-process",
        seed=7,
    )
    assert info.to_json() == {
        "method": "psl",
        "sampler": "gpsl",
        "model": "small-cnn",
        "cut": "block1",
        "num_clients": 10,
        "num_examples": 1437,
        "rounds": 3,
        "transport": "in-process",
        "seed": 7,
        "sampler_details": {},
    }


@settings(deadline=None)
@given(
    clients=st.dictionaries(st.integers(0, 2**63 - 1), st.integers(0, 10_000), max_size=5),
    loss=st.floats(allow_nan=False, allow_infinity=False),
)
def test_numpy_numbers_become_the_same_json(clients: dict[int, int], loss: float) -> None:
    def text(integer: Callable[[int], Any], real: Callable[[float], Any]) -> str:
        record = StepRecord(
            server_round=integer(1),
            step=integer(1),
            loss=real(loss),
            effective_batch_size=integer(sum(clients.values())),
            clients={integer(key): integer(size) for key, size in clients.items()},
            bytes_up=integer(1),
            bytes_down=integer(2),
            seconds={"total": real(1.0)},
        )
        return json.dumps(record.to_json(), allow_nan=False)

    assert text(np.int64, np.float64) == text(int, float)
    assert {int(k): size for k, size in json.loads(text(int, float))["clients"].items()} == clients


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_step_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"round 2, step 3: loss is {value}; .*finite.*Stop"):
        step_record(loss=value)
    with pytest.raises(ConfigError, match=rf"seconds\['total'\] is {value}; .*finite"):
        step_record(seconds={"total": value})
    with pytest.raises(ConfigError, match=rf"client_seconds\[3\] is {value}; .*finite"):
        step_record(client_seconds={3: value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_round_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"round 1: train_loss is {value}; .*finite.*Stop"):
        round_record(train_loss=value)
    with pytest.raises(ConfigError, match=f"round 1: accuracy is {value}"):
        round_record(accuracy=value)
    with pytest.raises(ConfigError, match=f"round 1: loss is {value}"):
        round_record(loss=value)
    with pytest.raises(ConfigError, match=f"round 1: seconds is {value}"):
        round_record(seconds=value)


def test_step_without_its_wall_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['forward'\]; .*wall time.*Add it as seconds"):
        step_record(seconds={"forward": 1.0})
