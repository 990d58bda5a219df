"""Clients called directly: for tests, research and notebooks, without any Flower process."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flower_psl.errors import ClientError, ConfigError, ProtocolError
from flower_psl.transport.transport import Device
from flower_psl.wire import DescribeReply, StepReply, StepRequest, check_belongs


class InProcessTransport:
    """Calls the clients one after the other, in this thread.

    Tensors are handed over as they are: nothing is copied or encoded. A call cannot be
    bounded in time from outside, so the time-outs of a run do not apply here.

    Parameters
    ----------
    clients : mapping of int to Device
        Clients by client key.

    Raises
    ------
    ConfigError
        If there are none, or a key is not an integer of 0 or more.
    """

    name = "in-process"

    def __init__(self, clients: Mapping[int, Device]) -> None:
        if not clients:
            raise ConfigError("clients is empty; give at least one, as {client key: SplitClient}")
        for key in clients:
            if not isinstance(key, int) or isinstance(key, bool) or key < 0:
                raise ConfigError(f"client key {key!r}; a key is an integer of 0 or more")
        self._clients = {key: clients[key] for key in sorted(clients)}

    def nodes(self) -> list[int]:
        """Return the client keys."""
        return list(self._clients)

    def describe(self, nodes: Iterable[int], timeout_s: float) -> dict[int, DescribeReply]:
        """Ask each client for its description; its key is the one it was given here."""
        descriptions = {}
        for node in nodes:
            try:
                description = self._clients[node].describe()
            except Exception as error:
                raise ClientError(
                    f"client {node}, describing itself, raised {type(error).__name__}: {error}"
                ) from error
            descriptions[node] = replace(description, client_key=node)
        return descriptions

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> dict[int, StepReply]:
        """Call each client with its request."""
        return {node: self._call(node, request) for node, request in requests.items()}

    def _call(self, node: int, request: StepRequest) -> StepReply:
        try:
            reply = self._clients[node].handle(request)
        except ProtocolError:
            raise  # names the step already
        except Exception as error:
            raise ClientError(
                f"{request.id}: the client raised {type(error).__name__}: {error}"
            ) from error
        check_belongs(reply, request)
        return reply
