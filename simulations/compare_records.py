"""What a method's run came to, by round: accuracy, traffic, simulated time, and work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from simulations.result_store import Row

COLUMNS = (
    "accuracy",
    "best_accuracy",
    "steps",
    "megabytes",
    "seconds",
    "device_gigaflop",
    "device_memory_mb",
    "device_parameters",
    "accuracy_by_round",
    "megabytes_by_round",
    "seconds_by_round",
    "device_gigaflop_by_round",
)

Step = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What simulated time takes the devices, the server and the network between them for.

    Attributes
    ----------
    device_gigaflops, server_gigaflops : float
        10^9 floating-point operations a second, of one device and of the server.
    device_megabytes : float
        10^6 bytes a second between the server and each device.
    latency_s : float
        Of an exchange, there and back, in seconds.
    """

    device_gigaflops: float
    server_gigaflops: float
    device_megabytes: float
    latency_s: float


def read_run(folder: Path, machines: Machines) -> Row:
    """Return a method's row, from what its run left behind.

    Parameters
    ----------
    folder : Path
        With ``summary.json``, ``steps.jsonl`` and ``device.json``.
    machines : Machines
        For simulated time.

    Returns
    -------
    dict
        Of `COLUMNS`. What is "by round" is cumulative, but for the accuracy, begins with round
        0, and is text with spaces between the numbers. Megabytes are those of all devices,
        both ways; work is that of a device on average; memory that of the largest batch.
    """
    summary, needs = (
        json.loads((folder / name).read_text()) for name in ("summary.json", "device.json")
    )
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    rounds = [list(some) for _, some in groupby(steps, key=lambda step: step["round"])]
    megabytes = _cumulative([_bytes(some) / 1e6 for some in rounds])
    seconds = _cumulative([_seconds(some, needs, machines) for some in rounds])
    work = needs["flops_per_example"] / max(1, summary["num_clients"]) / 1e9
    gigaflop = _cumulative([work * _examples(some) for some in rounds])
    largest = needs["local_batch_size"] or max(
        (size for step in steps for size in step["clients"].values()), default=0
    )
    held = needs["fixed_bytes"] + largest * needs["bytes_per_example"]
    accuracies = summary["accuracy_by_round"]
    return {
        "accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "steps": summary["steps"],
        "megabytes": megabytes[-1],
        "seconds": seconds[-1],
        "device_gigaflop": gigaflop[-1],
        "device_memory_mb": held / 1e6,
        "device_parameters": needs["parameters"],
        "accuracy_by_round": _text(accuracies),
        "megabytes_by_round": _text(megabytes),
        "seconds_by_round": _text(seconds),
        "device_gigaflop_by_round": _text(gigaflop),
    }


def by_round(row: Row, name: str) -> list[float]:
    """Return a row's numbers by round.

    Parameters
    ----------
    row : dict
        Of `read_run`.
    name : str
        A column that ends in ``_by_round``.
    """
    return [float(word) for word in str(row[name]).split()]


def _seconds(steps: Sequence[Step], needs: Mapping[str, int], machines: Machines) -> float:
    """Return a round's simulated seconds.

    A step lasts as long as the device with the most examples needs to compute them and to send
    what belongs to them; to this come exchanges, a device's share of all other bytes, and the
    server's part.
    """
    seats = sum(len(step["clients"]) for step in steps)
    traffic = needs["traffic_bytes_per_example"]
    other_bytes = (_bytes(steps) - _examples(steps) * traffic) / seats if seats else 0.0
    rate = 1e6 * machines.device_megabytes
    an_example = needs["flops_per_example"] / (1e9 * machines.device_gigaflops) + traffic / rate
    a_step = needs["exchanges_per_step"] * machines.latency_s + other_bytes / rate
    on_server = needs["server_flops_per_example"] / (1e9 * machines.server_gigaflops)
    seconds = 0.0
    for step in steps:
        parts = step["clients"].values()
        seconds += a_step * bool(parts) + an_example * max(parts, default=0)
        seconds += on_server * step["effective_batch_size"]
    return seconds


def _bytes(steps: Sequence[Step]) -> int:
    return sum(step["bytes_up"] + step["bytes_down"] for step in steps)


def _examples(steps: Sequence[Step]) -> int:
    return sum(sum(step["clients"].values()) for step in steps)


def _cumulative(values: Sequence[float]) -> list[float]:
    return [0.0, *np.cumsum(values).tolist()]


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
