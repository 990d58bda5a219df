"""The benchmark's rows as Markdown, with the machine they are of."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from simulations.bench_row import BenchRow
from simulations.table import table


def report(rows: Sequence[BenchRow]) -> str:
    """Return tables of the steps, of their parts and of throughput, and the machine.

    Parameters
    ----------
    rows : sequence of BenchRow
        The rows, in the order to show them in.
    """
    steps = [row for row in rows if row.throughput_bytes_per_s is None]
    tables = [
        table([_step_cells(row) for row in steps]),
        table([_part_cells(row) for row in steps]),
        table(
            [
                _throughput_cells(row, row.throughput_bytes_per_s)
                for row in rows
                if row.throughput_bytes_per_s is not None
            ]
        ),
    ]
    return "\n\n".join([*tables, machine()])


def machine() -> str:
    """Return the machine and the versions, in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "flwr", "grpcio"))
    return (
        f"{os.cpu_count()} cores, {_processor()}, {platform.system()}; "
        f"Python {platform.python_version()}, {versions}."
    )


def _step_cells(row: BenchRow) -> dict[str, str]:
    speedup = row.speedup_over_messages
    return {
        "a step of": _shown_name(row),
        "split": _time(row.ours_s),
        "95th percentile": _time(row.p95_s),
        "plain loop": _time(row.reference_s),
        "ratio": _number(row.ratio),
        "beyond compute": _time(row.beyond_compute_s),
        "over messages": "" if speedup is None else f"{_number(speedup)} times as long",
    }


def _part_cells(row: BenchRow) -> dict[str, str]:
    return {
        "a step of": _shown_name(row),
        **{name: _time(seconds) for name, seconds in row.parts_s.items()},
        "MB up": f"{row.bytes_up / 1e6:.2f}",
        "MB down": f"{row.bytes_down / 1e6:.2f}",
        "examples/s": f"{row.examples_per_s:,.0f}",
        "plain loop": f"{row.reference_examples_per_s:,.0f}",
        "ratio of these": _number(row.examples_per_s / row.reference_examples_per_s),
    }


def _throughput_cells(row: BenchRow, bytes_per_s: float) -> dict[str, str]:
    return {
        "through": "memory" if "-memory-" in row.name else "TLS",
        "activations": f"{row.bytes_up / 1e6:.3g} MB",
        "up and down": f"{bytes_per_s / 1e6:.0f} MB/s",
        "a step": _time(row.ours_s),
        "of it compute": _time(row.parts_s["compute"]),
    }


def _shown_name(row: BenchRow) -> str:
    return row.name.removesuffix("-step")


def _time(seconds: float) -> str:
    if abs(seconds) >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.{0 if abs(seconds) >= 0.1 else 1}f} ms"


def _number(value: float) -> str:
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _processor() -> str:
    """Return the processor's name, which Python itself does not know on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
