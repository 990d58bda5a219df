"""A Flower deployment of one's own, on this machine: SuperLink and SuperNodes, with TLS."""

import os
import signal
import socket
import sys
from pathlib import Path

from simulations.flower_federation import (
    CONNECTION,
    FlowerFederation,
    RunConfig,
    free_port,
    toml_pairs,
)


class FlowerDeployment(FlowerFederation):
    """A SuperLink with TLS and SuperNode authentication, and SuperNodes, on loopback.

    On Linux, SuperNodes and their apps are scheduled as batch jobs.

    Parameters
    ----------
    app : Path
        The folder of the Flower app.
    num_supernodes : int
        Devices.
    """

    def __init__(self, app: Path, num_supernodes: int) -> None:
        super().__init__(app)
        self._num_supernodes = num_supernodes
        self._port = 0

    def start(self) -> None:
        """Make the keys, start the SuperLink, register and start the SuperNodes."""
        self._make_certificate()
        port = self._port = free_port()
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{port}"\nroot-certificates = "{self.home}/server.crt"\n'
        )
        self._start_process(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
            *("--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"),
            *("--ssl-ca-certfile", "server.crt", "--enable-supernode-auth"),
        )
        self._await(lambda: _listens(port), "superlink")
        for node in range(self._num_supernodes):
            key = f"node-{node}"
            self._command("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", key)
            self._command("flwr", "supernode", "register", f"{key}.pub", CONNECTION)
            self._start_supernode(node)

    def kill_supernode(self, node: int) -> None:
        """Kill a SuperNode and all that it has started, as if its device had lost its power."""
        process = self._processes[f"supernode-{node}"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def revive_supernodes(self) -> None:
        """Start the SuperNodes again that have ended, each with the key that it had.

        To be called again and again, as a service manager looks after its services: for up to
        a minute, in which the SuperLink has not noticed yet that a SuperNode was killed, it
        refuses the new one, which then ends.
        """
        for node in range(self._num_supernodes):
            if self._processes[f"supernode-{node}"].poll() is not None:
                self._start_supernode(node)

    def _start_supernode(self, node: int) -> None:
        config = {"partition-id": node, "num-partitions": self._num_supernodes}
        self._start_process(
            f"supernode-{node}",
            *("flower-supernode", "--superlink", f"127.0.0.1:{self._port}"),
            *("--root-certificates", "server.crt"),
            *("--auth-supernode-private-key", f"node-{node}"),
            *("--port", str(free_port()), "--node-config", toml_pairs(config)),
        )
        # Devices do not push the server off a processor that they share with it here, and
        # would not anywhere else. What the SuperNode starts inherits the policy.
        if sys.platform == "linux":
            pid = self.process_of(f"supernode-{node}")
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))

    def run(
        self, run_config: RunConfig, *, timeout_s: float, quiet: bool = False
    ) -> tuple[str, str]:
        """Run the app by `flwr run` and wait for its end; see `FlowerSimulation.run`."""
        return self._flwr_run(
            *("--run-config", toml_pairs(run_config)) * bool(run_config),
            timeout_s=timeout_s,
            quiet=quiet,
        )

    def _make_certificate(self) -> None:
        self._command(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "server.key", "-out", "server.crt", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
