"""A deployment whose ServerApp is killed again and again, and run again each time."""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from simulations.flower_deployment import FlowerDeployment
from simulations.flower_federation import RunConfig
from simulations.options import check_at_least
from simulations.server_killer import Death, ServerKiller
from simulations.table import table
from simulations.verdict import verdict

ROOT = Path(__file__).parent.parent

NUM_DEVICES = 2
_STEPS_PER_ROUND = 20
# Each device trains its segment by itself, and saves it at every checkpoint.
_CONFIG: RunConfig = {
    "client-sync": "round",
    "server-update": "per-client-average",
    "steps-per-round": _STEPS_PER_ROUND,
    "min-available-nodes": NUM_DEVICES,
    "transport": "stream",
    "stream-connect-timeout-s": 240.0,
    # For as long a device waits for a server that was killed, before it serves the next one.
    "stream-reconnect-timeout-s": 5.0,
}
_EVERY_STEPS = 3
_TIMEOUT_S = 600.0
# A kill is up to this long after a checkpoint, within the steps that follow it; every so many
# kills are while one is written.
_LONGEST_DELAY_S = 0.05
_IN_WRITING_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class RestartSettings:
    """What `restarts` does.

    Attributes
    ----------
    out : Path
        Folder of the records of both runs.
    moments : int
        How often the server is killed.
    seed : int
        Of the moments.
    """

    out: Path
    moments: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least("moments", self.moments, 1)

    @property
    def num_rounds(self) -> int:
        """Rounds enough for all kills."""
        return self.moments + 2

    @property
    def run_config(self) -> RunConfig:
        """What both runs change in the app's configuration."""
        return {**_CONFIG, "num-server-rounds": self.num_rounds}


def restarts(settings: RestartSettings) -> str:
    """Kill the server of a deployment at random moments, and start its run again each time.

    The app on a SuperLink and two SuperNodes, which stay, on this machine. The process of the
    ServerApp is killed, by SIGKILL, at moments that the seed draws, some of them while a
    checkpoint is written. The run must end with the weights, to the last bit, and the steps of
    one that nobody killed.

    Raises
    ------
    RuntimeError
        If a run that was not killed fails, or one ends before it is killed.
    PslError
        If it does not end in that way.
    """
    deaths = run_killed(settings)
    run_whole(settings)
    rows = [
        {
            "kill": number,
            "steps saved": death.steps,
            "while writing": "yes" if death.in_writing else "no",
            "seconds after its start": death.seconds,
        }
        for number, death in enumerate(deaths, 1)
    ]
    folders = [settings.out / name for name in ("whole", "killed")]
    return verdict(table(rows), restart_problems(deaths, *folders))


def run_killed(settings: RestartSettings) -> list[Death]:
    """Make the run that is killed, with records in ``killed``.

    Raises
    ------
    RuntimeError
        As `restarts`.
    """
    # One moment in each of so many stretches of the run, and one stretch without.
    stretch = settings.num_rounds * _STEPS_PER_ROUND / (settings.moments + 1)
    draws = np.random.default_rng(settings.seed)
    runs: list[Future[tuple[str, str]]] = []
    deaths: list[Death] = []
    with (
        FlowerDeployment(ROOT, NUM_DEVICES) as deployment,
        # Flower takes a minute to end a run whose server is gone; the next one can begin.
        ThreadPoolExecutor(settings.moments + 2) as pool,
    ):

        def start(**more: str | int) -> Future[tuple[str, str]]:
            config = {**settings.run_config, **more}
            return pool.submit(deployment.run, config, timeout_s=_TIMEOUT_S, quiet=True)

        saving: dict[str, str | int] = {
            "out": str(settings.out.resolve() / "killed"),
            "checkpoint-folder": str(deployment.home / "checkpoints"),
            "checkpoint-every-steps": _EVERY_STEPS,
            "state-dir": str(deployment.home / "devices"),
        }
        killer = ServerKiller(
            deployment.process_of("superlink"), deployment.home / "checkpoints", _STEPS_PER_ROUND
        )
        for number in range(settings.moments):
            at_step = (number + draws.random()) * stretch
            delay_s = draws.random() * _LONGEST_DELAY_S if number % _IN_WRITING_EVERY else None
            runs.append(start(**saving))
            deaths.append(killer.kill(runs[-1], at_step, delay_s))
        if "resumed from" not in (log := _end_of(start(**saving).result(), "completed")):
            raise RuntimeError(f"the last run began anew:\n{log}")
        for run in runs:
            _end_of(run.result(), "failed")
    return deaths


def run_whole(settings: RestartSettings) -> None:
    """Make the run that nobody kills, with records in ``whole``.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    config = {**settings.run_config, "out": str(settings.out.resolve() / "whole")}
    with FlowerDeployment(ROOT, NUM_DEVICES) as deployment:
        _end_of(deployment.run(config, timeout_s=_TIMEOUT_S, quiet=True), "completed")


def restart_problems(deaths: Sequence[Death], whole: Path, killed: Path) -> list[str]:
    """Return in what restarts were not what they must be, in words; nothing if all is well.

    Parameters
    ----------
    deaths : sequence of Death
        The kills.
    whole, killed : Path
        What the run that nobody killed has left behind, and the other.
    """
    problems = []
    if len(deaths) >= _IN_WRITING_EVERY and not any(death.in_writing for death in deaths):
        problems.append("no checkpoint was being written at any of the kills; one must be")
    expected, found = (folder / "model.safetensors" for folder in (whole, killed))
    if expected.read_bytes() != found.read_bytes():
        problems.append("the final weights are not those without restarts, to the last bit")
    for number, (step, other) in enumerate(
        zip_longest(timeless_steps(whole), timeless_steps(killed)), 1
    ):
        if step != other:
            problems.append(f"step {number} of the run is {other}, and without restarts {step}")
            break
    return problems


def timeless_steps(folder: Path) -> list[dict[str, Any]]:
    """Return a run's steps, without what a clock measured."""
    lines = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if "seconds" not in name} for line in lines]


def _end_of(ended: tuple[str, str], how: str) -> str:
    """Return the log of a run, which must have ended in some way."""
    status, log = ended
    if not status.startswith(f"finished:{how}"):
        raise RuntimeError(f"a run ended as {status}, not as {how}:\n{log}")
    return log
