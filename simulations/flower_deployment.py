"""A Flower deployment of one's own, on this machine: SuperLink and SuperNodes, with TLS."""

import socket
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

    def start(self) -> None:
        """Make the keys, start the SuperLink, register and start the SuperNodes."""
        self._make_certificate()
        port = free_port()
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
            config = {"partition-id": node, "num-partitions": self._num_supernodes}
            self._start_process(
                f"supernode-{node}",
                *("flower-supernode", "--superlink", f"127.0.0.1:{port}"),
                *("--root-certificates", "server.crt", "--auth-supernode-private-key", key),
                *("--port", str(free_port()), "--node-config", toml_pairs(config)),
            )

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
