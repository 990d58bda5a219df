"""Seconds a step against the plain PyTorch loop on the same global batches."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from torch.nn import functional

from flower_psl import run_in_process
from simulations.bench_app import workload
from simulations.flower_deployment import FlowerDeployment
from simulations.flower_simulation import FlowerSimulation

_NUM_RUNS = 7
_TIMEOUT_S = 600.0
_APP = Path(__file__).parent


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
    comparisons = [in_process_step(), *simulation_steps(), *deployment_steps()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(row) for row in comparisons], indent=2) + "\n")
    return comparisons


def in_process_step() -> Comparison:
    """Compare a whole in-process run of ten clients with a whole plain loop, in turns."""
    num_clients = 10
    clients = {key: workload.build_client(key) for key in range(num_clients)}
    arrays = ArrayRecord(workload.build_model().state_dict())

    def ours() -> None:
        run_in_process(workload.build_strategy(), clients, arrays, num_rounds=1)

    steps = len(_schedule(num_clients))
    ours_s, reference_s = _alternate(ours, plain_loop(num_clients), steps)
    return _compare("in-process-step", ours_s, reference_s)


def simulation_steps() -> Iterator[Comparison]:
    """Compare a step of ten simulated devices, on two actors, with the plain loop's."""
    num_clients = 10
    reference_s = _reference(num_clients)
    with FlowerSimulation(_APP) as simulation:
        for transport in ("messages", "stream"):
            ours_s = _steps_of(
                partial(simulation.run, num_supernodes=num_clients, num_actors=2),
                {"transport": transport, "steps-per-round": 30, "num-clients": num_clients},
            )
            yield _compare(f"simulation-{transport}-step", ours_s, reference_s)


def deployment_steps() -> Iterator[Comparison]:
    """Compare a step of two SuperNodes on this machine, with TLS, with the plain loop's."""
    num_clients = 2
    reference_s = _reference(num_clients)
    with FlowerDeployment(_APP, num_clients) as deployment:
        for transport, steps in (("messages", 4), ("stream", 8)):
            ours_s = _steps_of(
                deployment.run,
                {"transport": transport, "steps-per-round": steps, "num-clients": num_clients},
            )
            yield _compare(f"deployment-{transport}-step", ours_s, reference_s)


def _steps_of(
    run: Callable[..., tuple[str, str]], run_config: dict[str, int | str]
) -> list[float]:
    """Return the seconds of each step of a run but for the first, which makes the clients."""
    with tempfile.TemporaryDirectory() as folder:
        status, log = run(run_config | {"out": folder}, timeout_s=_TIMEOUT_S, quiet=True)
        if status != "finished:completed":
            raise RuntimeError(f"the run ended as {status}:\n{log}")
        lines = (Path(folder) / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"]["total"] for line in lines[1:]]


def _reference(num_clients: int) -> list[float]:
    loop = plain_loop(num_clients)
    loop()
    return [_timed(loop) / len(_schedule(num_clients)) for _ in range(_NUM_RUNS)]


def plain_loop(num_clients: int) -> Callable[[], None]:
    """Return centralized training on GPSL's global batches, one round of it.

    Which examples of a client come first makes no difference to the time, so each gives
    them in their own order.
    """
    data = [workload.client_data(key) for key in range(num_clients)]
    images = torch.cat([images for images, _ in data])
    labels = torch.cat([labels for _, labels in data])
    batches, used = [], [0] * num_clients
    for step in _schedule(num_clients):
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


def _schedule(num_clients: int) -> list[dict[int, int]]:
    num_examples = dict.fromkeys(range(num_clients), workload.EXAMPLES_PER_CLIENT)
    return list(workload.build_sampler().schedule(num_examples, 1))


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
