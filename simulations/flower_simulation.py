"""A Flower simulation of one's own: `flwr run` against a SuperLink that ends with the block.

The SuperLink that a plain `flwr run` starts outlives it and is used again by any later
one, with the environment and the working directory of the first. Here each has a free
port, a Flower home in a temporary folder, and is ended by its process id.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

RunConfig = Mapping[str, bool | int | float | str]

_STARTUP_TIMEOUT_S = 90.0
_CONNECTION = "simulation"


class FlowerSimulation:
    """A SuperLink in simulation mode, as a context manager.

    Parameters
    ----------
    app : Path
        The folder of the Flower app.

    Raises
    ------
    RuntimeError
        On entering, if the SuperLink does not start.
    """

    def __init__(self, app: Path) -> None:
        self._app = app
        self._folder = tempfile.TemporaryDirectory(prefix="flower-psl-")
        self._home = Path(self._folder.name)
        self._environment = os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self._superlink: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the SuperLink and wait until it answers."""
        port = _free_port()
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
            f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
        with (self._home / "superlink.log").open("wb") as log:
            self._superlink = subprocess.Popen(
                [*command, "--port", str(port)],
                env=self._environment,
                cwd=self._home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_health(f"http://127.0.0.1:{port}/health")
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
        """End the SuperLink and what it started."""
        self._stop()

    def run(
        self,
        run_config: RunConfig,
        *,
        num_supernodes: int,
        num_actors: int,
        timeout_s: float,
        quiet: bool = False,
    ) -> tuple[str, str]:
        """Run the app by `flwr run` and wait for its end.

        Parameters
        ----------
        run_config : mapping
            What differs from the app's configuration.
        num_supernodes : int
            Simulated devices.
        num_actors : int
            Processes that play them, each with one of the machine's cores.
        timeout_s : float
            Bound on the run, in seconds.
        quiet : bool
            Keep the log to oneself.

        Returns
        -------
        tuple of str
            The run's final status, such as ``finished:completed``, and its log.

        Raises
        ------
        TimeoutError
            If the run has not ended after `timeout_s`.
        """
        federation = {
            "num-supernodes": num_supernodes,
            "client-resources-num-cpus": 1,
            "init-args-num-cpus": num_actors,
        }
        command = [
            *("flwr", "run", str(self._app), _CONNECTION, "--stream"),
            *("--run-config", _toml_pairs(run_config)),
            *("--federation-config", _toml_pairs(federation)),
        ]
        log: list[str] = []
        deadline = time.monotonic() + timeout_s
        with subprocess.Popen(
            command,
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
        # The stream of logs can end a moment before the run does.
        while not (status := self._status()).startswith("finished"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run has not ended after {timeout_s:g} s: {status}")
            time.sleep(0.5)
        return status, "".join(log)

    def superlink_log(self) -> str:
        """Return what the SuperLink has logged."""
        return (self._home / "superlink.log").read_text(errors="replace")

    def _status(self) -> str:
        listing = subprocess.run(
            ["flwr", "list", _CONNECTION, "--format", "json"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        try:
            runs = json.loads(listing.stdout)["runs"]
        except (ValueError, KeyError) as error:
            raise RuntimeError(
                f"flwr list said no status: {listing.stdout}{listing.stderr}"
            ) from error
        return str(runs[0]["status"]) if runs else "finished:failed: the run was not accepted"

    def _await_health(self, url: str) -> None:
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while self._superlink is not None and self._superlink.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"the SuperLink did not start:\n{self.superlink_log()}")

    def _stop(self) -> None:
        if self._superlink is not None:
            # Its session holds what it started, the simulation's processes included.
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self._superlink.pid, sign)
                    self._superlink.wait(timeout=15)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            self._superlink = None
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _toml_pairs(values: RunConfig) -> str:
    """Return ``key=value`` pairs as `flwr run` reads them; JSON scalars are TOML's."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
