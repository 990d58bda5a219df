import json
from pathlib import Path
from typing import Any

import pytest

from simulations.compare_records import COLUMNS, Machines, by_round, read_run

# A second for a 10^9 operations on a device and for 10^6 bytes on their way; the server is ten
# times as fast as a device.
MACHINES = Machines(
    device_gigaflops=1.0, server_gigaflops=10.0, device_megabytes=1.0, latency_s=0.5
)
NEEDS = {
    "parameters": 7,
    "fixed_bytes": 100_000,
    "bytes_per_example": 10_000,
    "local_batch_size": 0,
    "flops_per_example": 10**8,
    "server_flops_per_example": 10**9,
    "traffic_bytes_per_example": 1000,
    "exchanges_per_step": 2,
}


def _step(number: int, clients: dict[str, int], num_bytes: int) -> dict[str, Any]:
    return {
        "round": number,
        "clients": clients,
        "effective_batch_size": sum(clients.values()),
        "bytes_up": num_bytes // 4,
        "bytes_down": num_bytes - num_bytes // 4,
    }


def _write(
    folder: Path,
    steps: list[dict[str, Any]],
    accuracies: list[float],
    num_clients: int,
    **needs: int,
) -> Path:
    summary = {
        "num_clients": num_clients,
        "steps": len(steps),
        "accuracy_by_round": accuracies,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "device.json").write_text(json.dumps(NEEDS | needs))
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def test_a_run_over_the_cut(tmp_path: Path) -> None:
    steps = [
        _step(1, {"0": 4, "1": 2}, 26_000),
        _step(1, {"1": 3}, 13_000),
        _step(2, {"0": 1}, 11_000),
    ]
    row = read_run(_write(tmp_path, steps, [0.1, 0.6, 0.5], 2), MACHINES)
    assert tuple(row) == COLUMNS
    assert (row["accuracy"], row["best_accuracy"], row["steps"]) == (0.5, 0.6, 3)
    assert by_round(row, "megabytes_by_round") == pytest.approx([0, 0.039, 0.05])
    # 9 examples, then 1, shared by two devices, of 0.1 GFLOP each.
    assert by_round(row, "device_gigaflop_by_round") == pytest.approx([0, 0.45, 0.5])
    # Four examples of the busiest device: 0.4 s, and 4 kB of activations and gradients. Then
    # three. In either step two exchanges and 10 kB of weights. The server has nine to compute.
    first = 4 * 0.101 + 3 * 0.101 + 2 * (2 * 0.5 + 0.01) + 9 * 0.1
    second = 0.101 + (2 * 0.5 + 0.01) + 0.1
    assert by_round(row, "seconds_by_round") == pytest.approx([0, first, first + second])
    assert row["device_memory_mb"] == pytest.approx(0.1 + 4 * 0.01)
    assert row["device_parameters"] == 7


def test_whole_models_on_devices(tmp_path: Path) -> None:
    needs = {
        "local_batch_size": 6,
        "server_flops_per_example": 0,
        "traffic_bytes_per_example": 0,
        "exchanges_per_step": 1,
    }
    steps = [_step(1, {"0": 10, "1": 30}, 400_000)]
    row = read_run(_write(tmp_path, steps, [0.1, 0.2], 2, **needs), MACHINES)
    assert row["seconds"] == pytest.approx(30 * 0.1 + 0.5 + 0.2)
    assert row["device_memory_mb"] == pytest.approx(0.1 + 6 * 0.01)
    assert row["device_gigaflop"] == pytest.approx(20 * 0.1)


def test_no_devices_at_all(tmp_path: Path) -> None:
    needs = dict.fromkeys(NEEDS, 0) | {"server_flops_per_example": 10**9}
    steps = [_step(1, {}, 0) | {"effective_batch_size": 8}]
    row = read_run(_write(tmp_path, steps, [0.1, 0.9], 0, **needs), MACHINES)
    assert row["seconds"] == pytest.approx(0.8)
    for name in ("megabytes", "device_gigaflop", "device_memory_mb"):
        assert row[name] == 0
