"""Kills the ServerApp of a run that saves checkpoints."""

import os
import re
import signal
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simulations.processes import processes

_POLL_S = 0.001
_CHECKPOINT = re.compile(r"round-(\d+)-step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Death:
    """What was there when a server had been killed.

    Attributes
    ----------
    steps : int
        The steps that were saved.
    in_writing : bool
        Whether a checkpoint was being written.
    seconds : float
        Since it was to be killed, its start included.
    """

    steps: int
    in_writing: bool
    seconds: float


class ServerKiller:
    """Kills the process of a ServerApp when its checkpoints say that it is time.

    Parameters
    ----------
    superlink : int
        The process that starts it.
    checkpoints : Path
        The folder of the run's checkpoints.
    steps_per_round : int
        Steps that each of its rounds has.
    """

    def __init__(self, superlink: int, checkpoints: Path, steps_per_round: int) -> None:
        self._superlink = superlink
        self._checkpoints = checkpoints
        self._steps_per_round = steps_per_round

    def kill(
        self, run: Future[tuple[str, str]], at_step: float, delay_s: float | None = None
    ) -> Death:
        """Wait for the server of a run, and kill it by SIGKILL.

        Parameters
        ----------
        run : future
            The run, which was started a moment ago.
        at_step : float
            The steps that must be saved first.
        delay_s : float, optional
            How long after that it is killed, in seconds; when it writes the next checkpoint,
            unless given.

        Raises
        ------
        RuntimeError
            If the run ends before.
        """
        started, old_drafts = time.monotonic(), self._drafts()
        # In this order: to look for a process is to look at all that the machine has.
        while self._saved_steps() < at_step or (process := self._server()) is None:
            _check_runs(run)
            time.sleep(_POLL_S)
        if delay_s is not None:
            time.sleep(delay_s)
        else:
            while not self._drafts() - old_drafts:  # without a pause, or it would be too late
                _check_runs(run)
        os.kill(process, signal.SIGKILL)
        while self._server() == process:
            time.sleep(_POLL_S)
        in_writing = bool(self._drafts() - old_drafts)
        return Death(self._saved_steps(), in_writing, time.monotonic() - started)

    def _server(self) -> int | None:
        found = processes(self._superlink, "flwr-serverapp")
        return found[-1] if found else None

    def _saved_steps(self) -> int:
        names = (_CHECKPOINT.fullmatch(path.name) for path in self._checkpoints.glob("*"))
        saved = [(int(n[1]) - 1) * self._steps_per_round + int(n[2]) for n in names if n]
        return max(saved, default=0)

    def _drafts(self) -> set[tuple[str, int]]:
        """Return what tells a checkpoint that is being written from those of earlier deaths."""
        found = set()
        for path in self._checkpoints.glob("*.draft"):
            with suppress(FileNotFoundError):  # it is whole by now
                found.add((path.name, path.stat().st_mtime_ns))
        return found


def _check_runs(run: Future[tuple[str, str]]) -> None:
    if run.done():
        status, log = run.result()
        raise RuntimeError(f"the run ended as {status} before its server was killed:\n{log}")
