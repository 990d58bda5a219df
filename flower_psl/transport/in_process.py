"""Clients called directly: for tests, research and notebooks, without any Flower process."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flower_psl.errors import ClientError, ConfigError, ProtocolError, PslError
from flower_psl.transport.answers import Answers, belonging
from flower_psl.transport.transport import Device, DeviceGroup, FusableDevice
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest


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

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        """Ask each client for its description; its key is the one it was given here."""
        outcomes = {node: self._describe(node) for node in nodes}
        return Answers.of(outcomes, outcomes)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        """Call each client with its request.

        Fused clients answer together, so they fail together.
        """
        if self._fused is not None and next(iter(requests.values())).phase is not Phase.EVALUATE:
            outcomes = _call_together(self._fused, requests)
        else:
            outcomes = {node: self._call(node, request) for node, request in requests.items()}
        return belonging(Answers.of(requests, outcomes), requests)

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Do nothing: clients and server compute in turns."""

    def _describe(self, node: int) -> DescribeReply | PslError:
        try:
            description = self._clients[node].describe()
        except Exception as error:
            return _failure(f"client {node}, describing itself,", error)
        return replace(description, client_key=node)

    def _call(self, node: int, request: StepRequest) -> StepReply | PslError:
        try:
            return self._clients[node].handle(request)
        except ProtocolError as error:
            return error  # names the step already
        except Exception as error:
            return _failure(f"{request.id}: the client", error)


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
) -> Mapping[int, StepReply | PslError]:
    try:
        replies = group.handle(list(requests.values()))
    except ConfigError:
        raise  # what no client can change
    except ProtocolError as error:
        return dict.fromkeys(requests, error)  # names the client and the step already
    except Exception as error:
        steps = [request.id for request in requests.values()]
        where = f"{steps[0]}, fused with {len(steps) - 1} other clients:"
        return dict.fromkeys(requests, _failure(where, error))
    return dict(zip(requests, replies, strict=True))


def _failure(who: str, error: Exception) -> ClientError:
    failure = ClientError(f"{who} raised {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
