"""A Flower federation of one's own: `flwr run` against processes that end with the block.

The SuperLink that a plain `flwr run` starts outlives it and is used again by any later
one, with the environment and the working directory of the first. Here each has free
ports and a Flower home in a temporary folder, and is ended by its process id.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

RunConfig = Mapping[str, bool | int | float | str]

STARTUP_TIMEOUT_S = 90.0
CONNECTION = "psl"


class FlowerFederation(ABC):
    """A SuperLink and what belongs to it, as a context manager.

    Parameters
    ----------
    app : Path
        The folder of the Flower app.

    Raises
    ------
    RuntimeError
        On entering, if a process does not start.
    """

    def __init__(self, app: Path) -> None:
        self._app = app
        self._folder = tempfile.TemporaryDirectory(prefix="flower-psl-")
        self.home = Path(self._folder.name)
        self._environment = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @abstractmethod
    def start(self) -> None:
        """Start the processes and wait until they can be used."""

    def __enter__(self) -> Self:
        """Start everything."""
        try:
            self._app = _bundled(self._app, self.home / "app")
            self.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what was started, and what that started."""
        self._stop()

    def log_of(self, name: str) -> str:
        """Return what a process has logged."""
        return (self.home / f"{name}.log").read_text(errors="replace")

    def process_of(self, name: str) -> int:
        """Return the id of a process that was started."""
        return self._processes[name].pid

    def _start_process(self, name: str, *command: str) -> None:
        """Start a process in a session of its own, so that all it starts can be ended."""
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=self._environment,
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await(self, ready: Callable[[], bool], name: str) -> None:
        """Wait for a process that was started."""
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while self._processes[name].poll() is None and time.monotonic() < deadline:
            if ready():
                return
            time.sleep(0.1)
        raise RuntimeError(f"{name} did not start:\n{self.log_of(name)}")

    def _command(self, *command: str) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=STARTUP_TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _flwr_run(self, *options: str, timeout_s: float, quiet: bool) -> tuple[str, str]:
        """Run the app by `flwr run`, and return the run's final status and its log.

        Raises
        ------
        TimeoutError
            If the run has not ended after `timeout_s`.
        """
        log: list[str] = []
        deadline = time.monotonic() + timeout_s
        with subprocess.Popen(
            ["flwr", "run", str(self._app), CONNECTION, "--stream", *options],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            watchdog = threading.Timer(timeout_s, process.kill)
            watchdog.start()
            try:
                for line in process.stdout or ():
                    log.append(line)
                    if not quiet:
                        print(line, end="", flush=True)
            finally:
                watchdog.cancel()
                process.kill()
        started = re.search(r"started run (\d+)", "".join(log))
        if started is None:
            return "finished:failed: the run was not accepted", "".join(log)
        # The stream of logs can end a moment before the run does.
        while not (status := self._status(started[1])).startswith("finished"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run has not ended after {timeout_s:g} s: {status}")
            time.sleep(0.5)
        return status, "".join(log)

    def _status(self, run_id: str) -> str:
        listing = self._command("flwr", "list", CONNECTION, "--run-id", run_id, "--format", "json")
        try:
            return str(json.loads(listing)["runs"][0]["status"])
        except (ValueError, LookupError) as error:
            raise RuntimeError(f"flwr list said no status: {listing}") from error

    def _stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes.values():
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            for process in self._processes.values():
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue
        self._processes.clear()
        self._folder.cleanup()


def _bundled(app: Path, there: Path) -> Path:
    """Copy what an app says belongs to its bundle, and return the folder.

    `flwr run` looks at every file of the app's folder, of a virtual environment in it too.
    """
    project = tomllib.loads((app / "pyproject.toml").read_text())
    include = project["tool"]["flwr"]["app"].get("fab-include")
    if include is None:
        return app
    for pattern in ("pyproject.toml", *include):
        for file in app.glob(pattern):
            copy = there / file.relative_to(app)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return there


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def toml_pairs(values: RunConfig) -> str:
    """Return ``key=value`` pairs as `flwr run` reads them; JSON scalars are TOML's."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
