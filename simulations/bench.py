"""Split training against the plain PyTorch loop on the same global batches."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from simulations.bench_app.workloads import WIDE_BATCHES
from simulations.bench_row import BenchRow, row_of, throughput
from simulations.bench_run import BenchRun, Measurement, RunApp, measure
from simulations.bench_table import report
from simulations.flower_deployment import FlowerDeployment
from simulations.flower_simulation import FlowerSimulation

_APP = Path(__file__).parent
_NUM_ACTORS = 2
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Venue:
    """Where runs are made, one after the other.

    Attributes
    ----------
    place : {"in-process", "simulation", "deployment"}
        Function calls; devices on two actors; or SuperNodes on this machine, with TLS and
        SuperNode authentication.
    num_clients : int
        Devices.
    runs : tuple of BenchRun
        The runs.
    """

    place: Literal["in-process", "simulation", "deployment"]
    num_clients: int
    runs: tuple[BenchRun, ...]


THROUGHPUT = "throughput"
MEMORY_THROUGHPUT = "throughput-memory"

_LIGHT = BenchRun("deployment-stream-light-step", "light", "stream", 13, 20, quick=True, repeats=3)
_WIDE = BenchRun(MEMORY_THROUGHPUT, "throughput", "stream", 6, len(WIDE_BATCHES), quick=True)


def _peers(num_clients: int, *, steps_per_round: int) -> tuple[BenchRun, ...]:
    """Return the runs of the peers' work, without and with overlap, and over TLS alone.

    They are measured by the samples/s of whole rounds, so these are to last for seconds, as those
    of a run do: a round's first steps follow on as long a rest, and take twice their time.
    """
    name = f"deployment-stream-{num_clients}-peers"
    plain = BenchRun(f"{name}-step", "peer", "stream", 2, steps_per_round, repeats=3)
    return plain, replace(plain, name=f"{name}-overlap-step", overlap=True), _over_tls(plain)


def _over_tls(run: BenchRun) -> BenchRun:
    """Return a run whose tensors all go over TLS, as they would between machines."""
    return replace(run, name=run.name.replace("-step", "-tls-step"), shared_memory=False)


VENUES = (
    Venue(
        "in-process", 10, (BenchRun("in-process-step", "cnn", "in-process", 4, 10, quick=True),)
    ),
    Venue(
        "simulation",
        10,
        (
            BenchRun("simulation-messages-step", "cnn", "messages", 3, 10),
            BenchRun("simulation-stream-step", "cnn", "stream", 4, 10, quick=True),
            BenchRun("simulation-messages-light-step", "light", "messages", 3, 10),
            BenchRun("simulation-stream-light-step", "light", "stream", 10, 20),
        ),
    ),
    Venue(
        "deployment",
        2,
        (
            BenchRun("deployment-messages-step", "cnn", "messages", 3, 1),
            BenchRun("deployment-stream-step", "cnn", "stream", 4, 10, quick=True),
            BenchRun("deployment-messages-light-step", "light", "messages", 3, 1),
            _LIGHT,
            _over_tls(_LIGHT),
            *_peers(2, steps_per_round=200),
            replace(_WIDE, name=THROUGHPUT, shared_memory=False),
            _WIDE,
        ),
    ),
    Venue(
        "simulation",
        200,
        (BenchRun("simulation-stream-200-clients-step", "many", "stream", 2, 10),),
    ),
    Venue("deployment", 8, _peers(8, steps_per_round=60)),
)


def bench(out: Path, *, quick: bool = False) -> str:
    """Measure, and write what was measured.

    Every process computes with one torch thread.

    Parameters
    ----------
    out : Path
        The JSON file: a list of rows, each as `BenchRow` describes it.
    quick : bool
        Leave out whatever goes over messages, and most else.

    Returns
    -------
    str
        The rows as Markdown tables.

    Raises
    ------
    RuntimeError
        If a run fails.
    """
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    rows = rows_of(dict(_measurements(quick)))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(each) for each in rows], indent=2) + "\n")
    return report(rows)


def rows_of(measured: dict[str, Measurement]) -> list[BenchRow]:
    """Return the rows of all runs, those of the throughput runs by batch size.

    Parameters
    ----------
    measured : dict of str to Measurement
        The measurements by name; two are those of the throughput runs.
    """
    by_size = {
        name: measured[name].every(len(WIDE_BATCHES)) for name in (THROUGHPUT, MEMORY_THROUGHPUT)
    }
    best = {name: max(throughput(part.steps) for part in parts) for name, parts in by_size.items()}
    rows = {
        name: row_of(name, part, _best(name, best))
        for name, part in measured.items()
        if name not in by_size
    }
    for name, each in rows.items():
        messages = rows.get(name.replace("-stream-", "-messages-").replace("-tls", ""))
        if messages is not None and messages is not each:
            rows[name] = replace(each, speedup_over_messages=messages.ours_s / each.ours_s)
    widths = [
        replace(
            row_of(f"{name}-{size * 256}KB-step", part, best[name]),
            throughput_bytes_per_s=throughput(part.steps),
        )
        for name, parts in by_size.items()
        for size, part in zip(WIDE_BATCHES, parts, strict=True)
    ]
    return [*rows.values(), *widths]


def _best(name: str, bytes_per_s: Mapping[str, float]) -> float:
    """Return the best throughput of what a run's tensors go through."""
    if name.startswith("in-process"):
        return math.inf
    return bytes_per_s[
        MEMORY_THROUGHPUT if "-stream-" in name and "-tls" not in name else THROUGHPUT
    ]


def _measurements(quick: bool) -> Iterator[tuple[str, Measurement]]:
    """Make the runs, and say on the way where we are."""
    started = time.monotonic()
    for venue in VENUES:
        runs = [run for run in venue.runs if run.quick or not quick]
        if not runs:
            continue
        with _open(venue) as run_app:
            for run in runs:
                elapsed_s = time.monotonic() - started
                print(f"{elapsed_s:4.0f} s: {run.name}, {venue.num_clients} clients", flush=True)
                yield run.name, measure(run, venue.num_clients, run_app)


@contextmanager
def _open(venue: Venue) -> Iterator[RunApp | None]:
    """Start what a venue's runs need; None stands for function calls."""
    if venue.place == "in-process":
        yield None
    elif venue.place == "simulation":
        with FlowerSimulation(_APP) as simulation:
            yield partial(
                simulation.run,
                num_supernodes=venue.num_clients,
                num_actors=_NUM_ACTORS,
                timeout_s=_TIMEOUT_S,
                quiet=True,
            )
    else:
        with FlowerDeployment(_APP, venue.num_clients) as deployment:
            yield partial(deployment.run, timeout_s=_TIMEOUT_S, quiet=True)
