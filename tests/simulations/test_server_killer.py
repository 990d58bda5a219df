import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from simulations.server_killer import ServerKiller

Run = Future[tuple[str, str]]


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that is called as Flower calls a ServerApp's, and waits."""
    command = [sys.executable, "-c", "input()", "flwr-serverapp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def killer(tmp_path: Path) -> ServerKiller:
    return ServerKiller(os.getpid(), tmp_path, steps_per_round=20)


class Looks(Run):
    """A run that lets something happen when it is looked at again, and ends after that."""

    def __init__(self, then: Path) -> None:
        super().__init__()
        self._then = then

    def done(self) -> bool:
        if self._then.exists():
            return True
        self._then.touch()
        return False

    def result(self, timeout: float | None = None) -> tuple[str, str]:
        return "finished:completed", "what it logged"


def test_a_server_is_killed_once_enough_is_saved(
    tmp_path: Path, killer: ServerKiller, server: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "round-2-step-3.safetensors").touch()
    (tmp_path / "round-2-step-1.draft").touch()  # of a server that was killed before
    death = killer.kill(Looks(tmp_path / "round-2-step-6.safetensors"), at_step=24, delay_s=0.0)
    assert server.wait(20) == -9
    assert (death.steps, death.in_writing) == (26, False)


def test_a_server_is_killed_while_it_writes(
    tmp_path: Path, killer: ServerKiller, server: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "round-2-step-3.safetensors").touch()
    (tmp_path / "round-2-step-1.draft").touch()
    death = killer.kill(Looks(tmp_path / "round-2-step-6.draft"), at_step=23)
    assert server.wait(20) == -9
    assert (death.steps, death.in_writing) == (23, True)


@pytest.mark.parametrize(("at_step", "delay_s"), [(24, 0.0), (23, None)])
def test_a_run_that_ends_before_is_an_error(
    tmp_path: Path,
    killer: ServerKiller,
    server: subprocess.Popen[bytes],
    at_step: int,
    delay_s: float | None,
) -> None:
    (tmp_path / "round-2-step-3.safetensors").touch()
    with pytest.raises(RuntimeError, match=r"ended as finished:completed before .*\nwhat it log"):
        killer.kill(Looks(tmp_path / "something"), at_step, delay_s)
    assert server.poll() is None
