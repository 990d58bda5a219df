"""The killer against a process of its own, and what followed a kill."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.endurance.endurance_app.step_times import STEP_TIMES
from simulations.killer import Aftermath, Kill, Killer, aftermath
from simulations.step_log import StepLog, TakenStep


@pytest.fixture
def victims() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes that wait until they are killed."""
    started = [
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def write(folder: Path, count: int, clients: list[int]) -> None:
    with (folder / STEP_TIMES).open("a") as file:
        for _ in range(count):
            step = {"at": time.time(), "seconds": 1e-3, "clients": clients}
            file.write(json.dumps(step) + "\n")


def not_a_device(key: int) -> None:
    raise AssertionError(f"the device of client {key} was killed")


def test_it_kills_those_who_take_part_and_leaves_enough(
    tmp_path: Path, victims: list[subprocess.Popen[bytes]]
) -> None:
    log = StepLog(tmp_path)
    here = [0, 1, 2]
    write(tmp_path, 10, here)
    asked: list[int] = []

    def process_of(key: int) -> int:
        asked.append(key)
        here.remove(key)
        write(tmp_path, 10, here)  # the run goes on without it
        return victims[key].pid

    killer = Killer(log, process_of, not_a_device, seed=1, most_away=2)
    looks = iter(range(100))
    killer.kill(3, 3, lambda: next(looks) > 50)
    assert [kill.client_key for kill in killer.kills] == asked
    assert len(set(asked)) == 2
    for key, victim in enumerate(victims):
        assert (victim.wait(20) if key in asked else victim.poll()) == (
            -9 if key in asked else None
        )
    assert all(0 <= kill.into_step < 1 for kill in killer.kills)


def test_a_client_without_a_process_is_not_killed(tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    write(tmp_path, 10, [0])
    killer = Killer(log, lambda _: None, not_a_device, seed=1, most_away=1)
    looks = iter(range(100))
    killer.kill(1, 1, lambda: next(looks) > 5)
    assert killer.kills == []


def test_every_third_kill_is_of_a_device(
    tmp_path: Path, victims: list[subprocess.Popen[bytes]]
) -> None:
    log = StepLog(tmp_path)
    write(tmp_path, 10, [0])
    processes = iter([*victims, *victims])
    devices: list[int] = []

    def process_of(_: int) -> int:
        write(tmp_path, 10, [0])
        return next(processes).pid

    killer = Killer(log, process_of, devices.append, seed=1, most_away=1)
    killer.kill(4, 1, lambda: len(killer.kills) > 3)
    assert [kill.whole_device for kill in killer.kills] == [False, False, True, False]
    assert devices == [0]
    assert [victim.wait(20) for victim in victims[:2]] == [-9, -9]
    assert victims[2].poll() is None


def steps(*clients_at: tuple[float, set[int]]) -> list[TakenStep]:
    return [TakenStep(at, 0.1, frozenset(clients)) for at, clients in clients_at]


@pytest.mark.parametrize(
    ("taken", "gap_s", "away_s"),
    [
        # The step during which it was killed may still have its part.
        (steps((9, {0, 1}), (11, {0, 1}), (15, {0}), (16, {0}), (75, {0, 1})), 5.0, 65.0),
        (steps((9, {0, 1}), (12, {0})), 2.0, math.inf),
        (steps((9, {0, 1}), (12, {0, 1})), math.inf, math.inf),
    ],
)
def test_what_followed_a_kill(taken: list[TakenStep], gap_s: float, away_s: float) -> None:
    kill = Kill(client_key=1, at=10.0, into_step=0.5)
    assert aftermath(kill, taken) == Aftermath(kill, gap_s, away_s)
