"""The clients that this process has made, so that a message need not make them again."""

import threading
from collections.abc import Callable

from flwr.app import Context

from flower_psl.client.split_client import SplitClient
from flower_psl.errors import ConfigError

ClientFn = Callable[[Context], SplitClient]


class ClientCache:
    """Clients by run and node, of the current run only."""

    def __init__(self) -> None:
        self._clients: dict[tuple[int, int], SplitClient] = {}
        self._step: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def get(self, client_fn: ClientFn, context: Context) -> SplitClient:
        """Return the node's client, made by `client_fn` the first time.

        Raises
        ------
        ConfigError
            If `client_fn` returns anything else than a `SplitClient`.
        """
        key = (context.run_id, context.node_id)
        if key not in self._clients:
            self._clients = {k: v for k, v in self._clients.items() if k[0] == context.run_id}
            client = client_fn(context)
            if not isinstance(client, SplitClient):
                raise ConfigError(
                    f"client_fn returned a {type(client).__name__}; it must return a "
                    "flower_psl.SplitClient"
                )
            self._clients[key] = client
        return self._clients[key]

    def start_step(self, step: tuple[int, ...]) -> None:
        """Free the autograd graphs of earlier steps, whichever clients they are of.

        Without it a process would keep one graph for every client that Flower ever sent
        its way, since the backward pass may have gone to another process.
        """
        # A client of this step must not have started before the others have forgotten.
        with self._lock:
            if self._step != step:
                self._step = step
                for client in self._clients.values():
                    client.forget()
