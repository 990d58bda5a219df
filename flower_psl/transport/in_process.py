"""Clients called directly: for tests, research and notebooks, without any Flower process."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flower_psl.errors import ClientError, ConfigError, ProtocolError
from flower_psl.transport.transport import Device, DeviceGroup, FusableDevice
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, check_belongs


class InProcessTransport:
    """Calls the clients one after the other, or all at once, in this thread.

    Tensors are handed over as they are: nothing is copied or encoded. A call cannot be
    bounded in time from outside, so the time-outs of a run do not apply here.

    Parameters
    ----------
    clients : mapping of int to Device
        Clients by client key.
    fuse : bool
        Whether the clients of a step compute it as one. They evaluate one after the other.

    Raises
    ------
    ConfigError
        If there are none, a key is not an integer of 0 or more, or they cannot be fused.
    """

    name = "in-process"

    def __init__(self, clients: Mapping[int, Device], *, fuse: bool = False) -> None:
        if not clients:
            raise ConfigError("clients is empty; give at least one, as {client key: SplitClient}")
        for key in clients:
            if not isinstance(key, int) or isinstance(key, bool) or key < 0:
                raise ConfigError(f"client key {key!r}; a key is an integer of 0 or more")
        self._clients = {key: clients[key] for key in sorted(clients)}
        self._fused = _fuse(self._clients) if fuse else None

    @property
    def refused(self) -> dict[str, int]:
        """Nothing: there is nobody else."""
        return {}

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
        if self._fused is not None and next(iter(requests.values())).phase is not Phase.EVALUATE:
            return _call_together(self._fused, requests)
        return {node: self._call(node, request) for node, request in requests.items()}

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Do nothing: clients and server compute in turns."""

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


def _fuse(clients: Mapping[int, Device]) -> DeviceGroup:
    key, first = next(iter(clients.items()))
    if not isinstance(first, FusableDevice):
        raise ConfigError(
            f"client {key} is a {type(first).__name__}, which cannot be fused; clients that run "
            "as one have a method fuse, as SplitClient has. Leave out fuse_clients."
        )
    return first.fuse(clients)


def _call_together(
    group: DeviceGroup, requests: Mapping[int, StepRequest]
) -> dict[int, StepReply]:
    try:
        replies = group.handle(list(requests.values()))
    except (ConfigError, ProtocolError):
        raise  # names the client and the step, or what no client can change
    except Exception as error:
        steps = [request.id for request in requests.values()]
        raise ClientError(
            f"{steps[0]}, fused with {len(steps) - 1} other clients: raised "
            f"{type(error).__name__}: {error}"
        ) from error
    for reply, request in zip(replies, requests.values(), strict=True):
        check_belongs(reply, request)
    return dict(zip(requests, replies, strict=True))
