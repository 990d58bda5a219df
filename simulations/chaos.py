"""A deployment whose devices, or their processes, are killed while it trains."""

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord

from flower_psl import run_in_process
from simulations.endurance.endurance_app.task import (
    NUM_CLIENTS,
    build_client,
    build_strategy,
    evaluation,
    initial_model,
)
from simulations.flower_deployment import FlowerDeployment
from simulations.flower_federation import RunConfig
from simulations.killer import Aftermath, Killer, aftermath
from simulations.options import check_at_least
from simulations.processes import processes
from simulations.step_log import StepLog
from simulations.table import table
from simulations.verdict import verdict

APP = Path(__file__).parent / "endurance"

_STEPS_PER_ROUND = 5
# A killed process is back about 65 seconds later, a device about 90; steps take 0.2 s at least.
_MOST_AWAY = 3
_STEPS_OF_A_WAVE = 700
_STEPS_AT_THE_END = 500
# How often ended SuperNodes are started again, as `apps/deployment` has it.
_REVIVAL_S = 10.0
_PACE_S = 0.1
_TIMEOUT_S = 3600.0

# What failures may cost.
_GRACE_S = 5.0
_MOST_LOST = 0.01


@dataclass(frozen=True, kw_only=True)
class ChaosSettings:
    """What `chaos` does.

    Attributes
    ----------
    out : Path
        Folder of the run's records.
    moments : int
        How often a process, or all of a device's, are killed.
    seed : int
        Of the training, and of who is killed and when.
    step_timeout_s : float
        Bound on the wait for an answer, in seconds.
    """

    out: Path
    moments: int = 10
    seed: int = 0
    step_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least("moments", self.moments, 1)

    @property
    def num_rounds(self) -> int:
        """Rounds enough for all kills, and for those who were killed to come back."""
        waves = math.ceil(self.moments / _MOST_AWAY)
        return math.ceil((_STEPS_OF_A_WAVE * waves + _STEPS_AT_THE_END) / _STEPS_PER_ROUND)


@dataclass(frozen=True, kw_only=True)
class ChaosResult:
    """What came of a run.

    Attributes
    ----------
    aftermaths : sequence of Aftermath
        What followed each kill.
    accuracy, undisturbed_accuracy : float
        On the test examples, of the run and of one without failures from the same seed.
    """

    aftermaths: Sequence[Aftermath]
    accuracy: float
    undisturbed_accuracy: float


def chaos(settings: ChaosSettings) -> str:
    """Kill devices, or their processes, while they train digits over the stream.

    A SuperLink and four SuperNodes, each with TLS, on this machine. Processes of their
    ClientApps are killed, by SIGKILL, at moments in mid-step that the seed draws, and every
    third time the SuperNode too, which is then started again. Each time the run goes on
    without the device, and takes it back when Flower has started its process again. The same
    training without failures is made in this process.

    Raises
    ------
    RuntimeError
        As `run_chaos`.
    PslError
        If failures cost more than they may.
    """
    result = run_chaos(settings)
    rows = [
        {
            "kill": number,
            "of": "device" if each.kill.whole_device else "process",
            "client": each.kill.client_key,
            "into its step": each.kill.into_step,
            "seconds until the run went on": each.gap_s,
            "until it was back": each.away_s,
        }
        for number, each in enumerate(result.aftermaths, 1)
    ]
    text = (
        f"{table(rows)}\n\naccuracy {result.accuracy:.4f}, without failures "
        f"{result.undisturbed_accuracy:.4f}"
    )
    return verdict(text, chaos_problems(result, settings.step_timeout_s))


def chaos_problems(result: ChaosResult, step_timeout_s: float) -> list[str]:
    """Return what failures cost a run beyond what they may, in words; nothing if all is well."""
    problems = []
    for number, each in enumerate(result.aftermaths, 1):
        where = f"kill {number}, of client {each.kill.client_key}"
        if each.gap_s > step_timeout_s + _GRACE_S:
            problems.append(
                f"{where}: the run went on after {each.gap_s:.1f} s; it must within the step's "
                f"time-out of {step_timeout_s:g} s and {_GRACE_S:g} s more"
            )
        if not math.isfinite(each.away_s):
            problems.append(f"{where}: the client took part in no later step; it must come back")
    # Rounded, since 0.98 - 0.97 is a little more than 0.01; what is not a number is not less.
    if not round(abs(result.accuracy - result.undisturbed_accuracy), 6) <= _MOST_LOST:
        problems.append(
            f"the accuracy is {result.accuracy:.4f} and without failures "
            f"{result.undisturbed_accuracy:.4f}; they may differ by {_MOST_LOST:g}"
        )
    return problems


def run_chaos(settings: ChaosSettings) -> ChaosResult:
    """Make the run with failures, and the one without.

    Raises
    ------
    RuntimeError
        If the run with failures fails, or ends before all kills.
    """
    log = StepLog(settings.out)
    config: RunConfig = {
        "out": str(settings.out.resolve()),
        "num-rounds": settings.num_rounds,
        "steps-per-round": _STEPS_PER_ROUND,
        "step-timeout-s": settings.step_timeout_s,
        "pace-s": _PACE_S,
        "seed": settings.seed,
    }
    with FlowerDeployment(APP, NUM_CLIENTS) as deployment, ThreadPoolExecutor(2) as pool:

        def process_of(key: int) -> int | None:
            found = processes(deployment.process_of(f"supernode-{key}"), "flwr-clientapp")
            return found[-1] if found else None

        killer = Killer(
            log,
            process_of,
            deployment.kill_supernode,
            seed=settings.seed,
            most_away=_MOST_AWAY,
        )
        running = pool.submit(deployment.run, config, timeout_s=_TIMEOUT_S, quiet=True)
        reviving = pool.submit(_revive, deployment, running)
        killer.kill(settings.moments, NUM_CLIENTS, running.done)
        status, text = running.result()
        reviving.result()
    log.close()
    if status != "finished:completed" or len(killer.kills) < settings.moments:
        raise RuntimeError(f"after {len(killer.kills)} kills the run ended as {status}:\n{text}")
    (settings.out / "server.log").write_text(text)
    summary = json.loads((settings.out / "summary.json").read_text())
    return ChaosResult(
        aftermaths=[aftermath(kill, log.steps) for kill in killer.kills],
        accuracy=summary["final_accuracy"],
        undisturbed_accuracy=_undisturbed(settings),
    )


def _revive(deployment: FlowerDeployment, running: Future[tuple[str, str]]) -> None:
    """Start killed devices again, as long as the run goes on."""
    while wait([running], timeout=_REVIVAL_S).not_done:
        deployment.revive_supernodes()


def _undisturbed(settings: ChaosSettings) -> float:
    rounds, seed = settings.num_rounds, settings.seed
    result = run_in_process(
        build_strategy(seed, steps_per_round=_STEPS_PER_ROUND),
        {key: build_client(key, seed) for key in range(NUM_CLIENTS)},
        ArrayRecord(initial_model(seed).state_dict()),
        num_rounds=rounds,
        evaluate_fn=evaluation(rounds),
    )
    accuracy = result.evaluate_metrics_serverapp[rounds]["accuracy"]
    return float(accuracy)  # type: ignore[arg-type]
