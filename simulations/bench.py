"""Seconds a step against the plain PyTorch loop on the same global batches."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from torch.nn import functional

from flower_psl import run_in_process
from simulations.bench_app import workload
from simulations.flower_simulation import FlowerSimulation

_NUM_RUNS = 7
_SIMULATION_STEPS = 30
_SIMULATION_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Comparison:
    """One row of the benchmark: medians, in seconds a step.

    Attributes
    ----------
    name : str
        What was measured.
    ours_s, reference_s, ratio : float
        A step of split training, of the plain loop, and their ratio.
    runs : int
        How many figures the medians are of: alternating runs, or steps of one run.
    """

    name: str
    ours_s: float
    reference_s: float
    ratio: float
    runs: int


def bench(out: Path) -> list[Comparison]:
    """Measure, and write what was measured.

    Every process computes with one torch thread.

    Parameters
    ----------
    out : Path
        The JSON file: a list of comparisons.
    """
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    comparisons = [in_process_step(), simulation_messages_step()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(row) for row in comparisons], indent=2) + "\n")
    return comparisons


def in_process_step() -> Comparison:
    """Compare a whole in-process run with a whole plain loop, in turns."""
    clients = {key: workload.build_client(key) for key in range(workload.NUM_CLIENTS)}
    arrays = ArrayRecord(workload.build_model().state_dict())

    def ours() -> None:
        run_in_process(workload.build_strategy(), clients, arrays, num_rounds=1)

    ours_s, reference_s = _alternate(ours, plain_loop(), _num_steps())
    return _compare("in-process-step", ours_s, reference_s)


def simulation_messages_step() -> Comparison:
    """Compare the steps of a simulation over Flower messages with the plain loop."""
    loop = plain_loop()
    loop()
    reference_s = [_timed(loop) / _num_steps() for _ in range(_NUM_RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        with FlowerSimulation(Path(__file__).parent) as simulation:
            status, log = simulation.run(
                {"out": folder, "steps-per-round": _SIMULATION_STEPS},
                num_supernodes=workload.NUM_CLIENTS,
                num_actors=2,
                timeout_s=_SIMULATION_TIMEOUT_S,
                quiet=True,
            )
        if status != "finished:completed":
            raise RuntimeError(f"the simulation ended as {status}:\n{log}")
        lines = (Path(folder) / "steps.jsonl").read_text().splitlines()
    # The first step is left out: it makes the clients in their processes.
    ours_s = [json.loads(line)["seconds"]["total"] for line in lines[1:]]
    return _compare("simulation-messages-step", ours_s, reference_s)


def plain_loop() -> Callable[[], None]:
    """Return centralized training on GPSL's global batches, one round of it.

    Which examples of a client come first makes no difference to the time, so each gives
    them in their own order.
    """
    data = [workload.client_data(key) for key in range(workload.NUM_CLIENTS)]
    images = torch.cat([images for images, _ in data])
    labels = torch.cat([labels for _, labels in data])
    batches, used = [], dict.fromkeys(range(workload.NUM_CLIENTS), 0)
    for step in _schedule():
        rows: list[int] = []
        for key, size in step.items():
            start = key * workload.EXAMPLES_PER_CLIENT + used[key]
            rows += range(start, start + size)
            used[key] += size
        batches.append(torch.tensor(rows))

    def loop() -> None:
        model = workload.build_model()
        optimizer = workload.build_optimizer(model)
        for rows in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

    return loop


def _schedule() -> list[dict[int, int]]:
    num_examples = dict.fromkeys(range(workload.NUM_CLIENTS), workload.EXAMPLES_PER_CLIENT)
    return list(workload.build_strategy().sampler.schedule(num_examples, 1))


def _num_steps() -> int:
    return len(_schedule())


def _alternate(
    ours: Callable[[], None], reference: Callable[[], None], steps: int
) -> tuple[list[float], list[float]]:
    """Time both in turns, after one run of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(_NUM_RUNS + 1):
        for side, function in enumerate((ours, reference)):
            seconds = _timed(function) / steps
            if run:
                times[side].append(seconds)
    return times


def _timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _compare(name: str, ours_s: list[float], reference_s: list[float]) -> Comparison:
    ours, reference = statistics.median(ours_s), statistics.median(reference_s)
    return Comparison(name, ours, reference, ours / reference, len(ours_s))
