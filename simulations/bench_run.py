"""One measured run: what to train, where, how long; and what its records say."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord

from flower_psl import RunRecorder, run_in_process
from simulations.bench_app.alternation import ROUNDS, WARM_UP_ROUNDS, Alternation
from simulations.bench_app.plain_loop_process import PlainLoopProcess
from simulations.bench_app.workloads import WORKLOADS

# Runs the benchmarks' app with a run config, and returns the run's status and log.
RunApp = Callable[[dict[str, int | str]], tuple[str, str]]


@dataclass(frozen=True)
class BenchRun:
    """One run of the benchmark.

    Attributes
    ----------
    name : str
        What its results are called.
    workload : str
        What is trained, by its name in `WORKLOADS`.
    transport : {"in-process", "messages", "stream"}
        How requests travel.
    rounds, steps : int
        Measured rounds, and steps in each. Another round comes first, to warm up.
    quick : bool
        Whether the quick form of the benchmark has it.
    overlap : bool
        Whether the server computes while tensors are on their way.
    shared_memory : bool
        Whether long tensors go through memory, as they do on one machine; otherwise all go
        over TLS, as they do between machines.
    repeats : int
        How often it is made, each time by new processes: allocator and scheduler settle
        differently in each, which can weigh more than what is measured.
    """

    name: str
    workload: str
    transport: Literal["in-process", "messages", "stream"]
    rounds: int
    steps: int
    quick: bool = False
    overlap: bool = False
    shared_memory: bool = True
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run's records say, without the rounds that warm up.

    Attributes
    ----------
    steps : sequence of mappings
        The lines of ``steps.jsonl``.
    reference_s : sequence of float
        Seconds of each step of the plain loop.
    rounds_s : sequence of float
        Wall time of each round of split training, in seconds, with all that happens
        between its steps.
    """

    steps: Sequence[Mapping[str, Any]]
    reference_s: Sequence[float]
    rounds_s: Sequence[float]

    def every(self, period: int) -> "list[Measurement]":
        """Return the measurements of the first, the second, ... of each `period` steps.

        They part the steps of a run whose rounds all have the same `period` steps.
        """
        return [
            Measurement(
                steps=self.steps[place::period],
                reference_s=self.reference_s[place::period],
                rounds_s=[step["seconds"]["total"] for step in self.steps[place::period]],
            )
            for place in range(period)
        ]


def measure(run: BenchRun, num_clients: int, run_app: RunApp | None = None) -> Measurement:
    """Make a run, as often as it says, and read its records.

    Parameters
    ----------
    run : BenchRun
        The run.
    num_clients : int
        Devices.
    run_app : callable, optional
        Runs the benchmarks' Flower app; none is needed in process.

    Raises
    ------
    RuntimeError
        If the run fails.
    """
    made = []
    for _ in range(run.repeats):
        with tempfile.TemporaryDirectory(prefix="flower-psl-bench-") as folder:
            if run_app is None:
                _run_in_process(run, num_clients, Path(folder))
            else:
                _run_app(run, num_clients, run_app, folder)
            made.append(read(Path(folder)))
    return Measurement(
        steps=[step for each in made for step in each.steps],
        reference_s=[seconds for each in made for seconds in each.reference_s],
        rounds_s=[seconds for each in made for seconds in each.rounds_s],
    )


def read(folder: Path) -> Measurement:
    """Return the measurement whose records are in a folder."""
    steps, rounds = (
        [
            line
            for text in (folder / name).read_text(encoding="utf-8").splitlines()
            if (line := json.loads(text))["round"] > WARM_UP_ROUNDS
        ]
        for name in ("steps.jsonl", ROUNDS)
    )
    return Measurement(
        steps=steps,
        reference_s=[seconds for line in rounds for seconds in line["reference_s"]],
        rounds_s=[line["ours_s"] for line in rounds],
    )


def _run_in_process(run: BenchRun, num_clients: int, out: Path) -> None:
    workload = WORKLOADS[run.workload]
    run_in_process(
        workload.build_strategy(
            recorder=RunRecorder(out), steps_per_round=run.steps, overlap=run.overlap
        ),
        {key: workload.build_client(key) for key in range(num_clients)},
        ArrayRecord(workload.build_model().state_dict()),
        WARM_UP_ROUNDS + run.rounds,
        evaluate_fn=Alternation(PlainLoopProcess(run.workload, num_clients), run.steps, out),
    )


def _run_app(run: BenchRun, num_clients: int, run_app: RunApp, out: str) -> None:
    status, log = run_app(
        {
            "out": out,
            "workload": run.workload,
            "transport": run.transport,
            "overlap": run.overlap,
            "shared-memory": run.shared_memory,
            "num-clients": num_clients,
            "num-rounds": WARM_UP_ROUNDS + run.rounds,
            "steps-per-round": run.steps,
        }
    )
    if status != "finished:completed":
        raise RuntimeError(f"the run {run.name} ended as {status}:\n{log}")
