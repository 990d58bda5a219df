"""A Flower simulation of one's own."""

import urllib.error
import urllib.request

from simulations.flower_federation import (
    CONNECTION,
    FlowerFederation,
    RunConfig,
    free_port,
    toml_pairs,
)

# Ray gives itself 30 s to start, which no setting changes; on a busy machine that can be too
# short. Nothing has been trained then, and the run is begun anew.
_RAY_WAS_LATE = "current node timed out during startup"
_MOST_STARTS = 3


class FlowerSimulation(FlowerFederation):
    """A SuperLink in simulation mode, as a context manager."""

    def start(self) -> None:
        """Start the SuperLink and wait until it answers."""
        port = free_port()
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self._start_process(
            "superlink",
            *("flower-superlink", "--insecure", "--simulation"),
            *("--host", "127.0.0.1", "--port", str(port)),
        )
        self._await(lambda: _answers(f"http://127.0.0.1:{port}/health"), "superlink")

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
            If the run has not ended after `timeout_s`, Ray's late starts apart.
        """
        federation = {
            "num-supernodes": num_supernodes,
            "client-resources-num-cpus": 1,
            "init-args-num-cpus": num_actors,
        }
        for _ in range(_MOST_STARTS):
            status, log = self._flwr_run(
                *("--run-config", toml_pairs(run_config)) * bool(run_config),
                *("--federation-config", toml_pairs(federation)),
                timeout_s=timeout_s,
                quiet=quiet,
            )
            if _RAY_WAS_LATE not in log:
                break
        return status, log


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
