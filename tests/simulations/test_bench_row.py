"""What a run's records become."""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest

from simulations.bench_row import parts_of, row_of, throughput
from simulations.bench_run import Measurement, read

SECONDS = {
    "encode": 0.001,
    "forward_exchange": 0.030,
    "decode": 0.002,
    "server_forward": 0.010,
    "server_backward": 0.020,
    "backward_exchange": 0.020,
    "update": 0.003,
    "client_compute": 0.015,
    "client_encode": 0.004,
    "transfer": 0.031,
    "total": 0.086,
}


def step(number: int = 1, server_round: int = 2, **seconds: float) -> dict[str, object]:
    return {
        "round": server_round,
        "step": number,
        "effective_batch_size": 32,
        "bytes_up": 1_000_000,
        "bytes_down": 2_000_000,
        "seconds": SECONDS | seconds,
    }


def measurement(*totals: float) -> Measurement:
    return Measurement(
        steps=[step(number, total=total) for number, total in enumerate(totals, 1)],
        reference_s=[0.04, 0.05, 0.09],
        rounds_s=[2 * sum(totals)],
    )


def test_the_parts_add_up_to_the_step() -> None:
    parts = parts_of(step(), best_bytes_per_s=3e8)
    assert parts["transfer"] == pytest.approx(0.010)
    assert parts["waiting"] == pytest.approx(0.021)
    assert parts["encoding"] == pytest.approx(0.007)
    assert parts["compute"] == pytest.approx(0.048)
    assert sum(parts.values()) == pytest.approx(SECONDS["total"])


def test_bytes_take_no_longer_than_the_exchanges_left_for_them() -> None:
    parts = parts_of(step(), best_bytes_per_s=1.0)
    assert (parts["transfer"], parts["waiting"]) == (SECONDS["transfer"], 0.0)


def test_where_no_byte_travels_nothing_is_transfer() -> None:
    assert parts_of(step(), best_bytes_per_s=float("inf"))["transfer"] == 0.0


def test_a_row_is_of_medians_and_of_whole_rounds() -> None:
    made = row_of("a", measurement(0.1, 0.2, 0.6), 3e8)
    assert (made.name, made.runs) == ("a", 3)
    assert (made.ours_s, made.reference_s) == (0.2, 0.05)
    assert made.ratio == pytest.approx(4.0)
    assert made.beyond_compute_s == pytest.approx(0.15)
    assert made.p95_s == pytest.approx(0.2 + 0.9 * 0.4)
    assert (made.bytes_up, made.bytes_down) == (1_000_000, 2_000_000)
    # Two thirds of the round's 1.8 s lie between its steps.
    assert made.examples_per_s == pytest.approx(3 * 32 / 1.8)
    assert made.reference_examples_per_s == pytest.approx(32 / statistics.mean([0.04, 0.05, 0.09]))
    assert json.loads(json.dumps(dataclasses.asdict(made)))["ours_s"] == 0.2


def test_throughput_is_bytes_over_the_seconds_of_transfer() -> None:
    steps: list[Mapping[str, object]] = [step(transfer=seconds) for seconds in (0.01, 0.02, 0.5)]
    assert throughput(steps) == pytest.approx(3e6 / 0.02)


def test_a_run_is_parted_by_the_places_of_its_steps() -> None:
    whole = Measurement(
        steps=[step(number, total=float(number)) for number in range(6)],
        reference_s=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        rounds_s=[3.0, 12.0],
    )
    first, second, third = whole.every(3)
    assert [each["step"] for each in first.steps] == [0, 3]
    assert second.reference_s == [1.0, 4.0]
    assert third.rounds_s == [2.0, 5.0]


def test_rounds_that_warm_up_are_left_out(tmp_path: Path) -> None:
    steps = [step(server_round=1), step(1, server_round=2), step(2, server_round=2)]
    rounds = [
        {"round": 0, "ours_s": 9.0, "reference_s": [9.0]},
        {"round": 1, "ours_s": 8.0, "reference_s": [8.0, 8.0]},
        {"round": 2, "ours_s": 0.3, "reference_s": [0.1, 0.2]},
    ]
    for name, lines in (("steps.jsonl", steps), ("rounds.jsonl", rounds)):
        (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    measured = read(tmp_path)
    assert measured.steps == steps[1:]
    assert measured.reference_s == [0.1, 0.2]
    assert measured.rounds_s == [0.3]
