"""A long run over the stream, to see whether anything grows."""

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from simulations.endurance.endurance_app.task import NUM_CLIENTS
from simulations.flower_deployment import FlowerDeployment
from simulations.load_log import Growth, LoadLog
from simulations.options import check_at_least
from simulations.processes import processes
from simulations.result_store import Row
from simulations.step_log import StepLog, TakenStep
from simulations.table import table
from simulations.verdict import verdict

APP = Path(__file__).parent / "endurance"

_STEPS_PER_ROUND = 10
# From one pass of a client to its next; a step has two, and takes no less than twice as long.
_PACE_S = 0.1
_LOOK_S = 5.0
# What is compared: the minute around the end of the second, and the last.
_EARLY_S = (90.0, 150.0)
_LATE_S = 60.0
# By how much.
_MEMORY_SHARE = 0.05
_SLOWER = 1.5


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """What `soak` does.

    Attributes
    ----------
    out : Path
        Folder of the run's records.
    minutes : float
        How long the run is, at least; 4 or more.
    """

    out: Path
    minutes: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least("minutes", self.minutes, 4.0)

    @property
    def num_rounds(self) -> int:
        """Rounds that take so long, if steps take as little time as they can."""
        return math.ceil(60 * self.minutes / (2 * _PACE_S) / _STEPS_PER_ROUND)


@dataclass(frozen=True, kw_only=True)
class SoakResult:
    """What came of a run.

    Attributes
    ----------
    growths : sequence of Growth
        Of the processes of the ServerApp and the ClientApps, from the minute around the end
        of the second one to the last.
    steps : int
        Steps that were taken.
    step_s : tuple of float
        Medians of the steps' seconds, in these two minutes.
    """

    growths: Sequence[Growth]
    steps: int
    step_s: tuple[float, float]


def soak(settings: SoakSettings) -> str:
    """Train digits over the stream for an hour, and watch what the processes take.

    A SuperLink and four SuperNodes, each with TLS, on this machine. Clients wait in each pass,
    so that the run leaves most of the machine to others.

    Raises
    ------
    RuntimeError
        As `run_soak`.
    PslError
        If anything has grown.
    """
    result = run_soak(settings)
    rows: list[Row] = [
        {
            "process": each.name,
            "MB at minute two": each.early.resident_mb,
            "at the end": each.late.resident_mb,
            "threads": each.early.threads,
            "threads at the end": each.late.threads,
            "gRPC's pool": each.early.pool_threads,
            "gRPC's pool at the end": each.late.pool_threads,
            "open files": each.early.open_files,
            "open files at the end": each.late.open_files,
        }
        for each in result.growths
    ]
    early_ms, late_ms = (1000 * seconds for seconds in result.step_s)
    text = (
        f"{table(rows)}\n\n{result.steps} steps, of {early_ms:.1f} ms at minute two and "
        f"{late_ms:.1f} ms at the end (medians)"
    )
    return verdict(text, soak_problems(result))


def soak_problems(result: SoakResult) -> list[str]:
    """Return what has grown in a run, in words; nothing if all is well."""
    problems = []
    for each in result.growths:
        early, late = each.early, each.late
        if abs(late.resident_mb / early.resident_mb - 1) > _MEMORY_SHARE:
            problems.append(
                f"{each.name}: {late.resident_mb:.0f} MB at the end and "
                f"{early.resident_mb:.0f} at minute two; they may differ by {_MEMORY_SHARE:.0%}"
            )
        # gRPC's pool has no bound of its own, but nothing here keeps its threads busy for long.
        for name, before, after, most in (
            ("threads", early.threads, late.threads, early.threads),
            (
                "threads of gRPC's pool",
                early.pool_threads,
                late.pool_threads,
                2 * early.pool_threads,
            ),
            ("open files", early.open_files, late.open_files, early.open_files),
        ):
            if after > most:
                problems.append(
                    f"{each.name}: {after} {name} at the end and {before} at minute two; there "
                    f"may be {most}"
                )
    early_s, late_s = result.step_s
    if late_s > _SLOWER * early_s:
        problems.append(
            f"a step takes {late_s:.3f} s at the end and took {early_s:.3f} s at minute two; it "
            f"may take {_SLOWER:g} times as long"
        )
    return problems


def run_soak(settings: SoakSettings) -> SoakResult:
    """Make the run.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    log = StepLog(settings.out)
    with FlowerDeployment(APP, NUM_CLIENTS) as deployment, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            deployment.run,
            {
                "out": str(settings.out.resolve()),
                "num-rounds": settings.num_rounds,
                "steps-per-round": _STEPS_PER_ROUND,
                "pace-s": _PACE_S,
            },
            timeout_s=600.0 + 600.0 * settings.minutes,
            quiet=True,
        )
        loads = LoadLog(lambda: _processes(deployment))
        while wait([running], timeout=_LOOK_S).not_done:
            loads.look()
        status, text = running.result()
    if status != "finished:completed":
        raise RuntimeError(f"the run ended as {status}:\n{text}")
    log.close()
    first, last = log.steps[0].at, log.steps[-1].at
    early = (first + _EARLY_S[0], first + _EARLY_S[1])
    late = (last - _LATE_S, last)
    return SoakResult(
        growths=loads.growth(early, late),
        steps=len(log.steps),
        step_s=(_median_s(log.steps, early), _median_s(log.steps, late)),
    )


def _processes(deployment: FlowerDeployment) -> dict[str, int]:
    named = {"ServerApp": ("superlink", "flwr-serverapp")} | {
        f"ClientApp {key}": (f"supernode-{key}", "flwr-clientapp") for key in range(NUM_CLIENTS)
    }
    found = {
        name: processes(deployment.process_of(root), program)
        for name, (root, program) in named.items()
    }
    return {name: each[-1] for name, each in found.items() if each}


def _median_s(steps: Sequence[TakenStep], part: tuple[float, float]) -> float:
    return statistics.median(step.seconds for step in steps if part[0] <= step.at <= part[1])
