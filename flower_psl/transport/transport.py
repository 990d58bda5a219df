"""How requests travel: the interface that the server sees, whatever carries them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from flower_psl.transport.answers import Answers
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest


class Device(Protocol):
    """What answers requests: a device, or something that plays one."""

    def describe(self) -> DescribeReply:
        """Say who it is, what data it has and which segment it runs."""

    def handle(self, request: StepRequest) -> StepReply:
        """Answer one request of a step."""

    def prepare(self, step: StepId) -> None:
        """Make ready what a later forward request for this step will need."""


class DeviceGroup(Protocol):
    """What answers the training requests of an exchange together."""

    def handle(self, requests: Sequence[StepRequest]) -> list[StepReply]:
        """Answer one training request of each device that takes part, in their order."""


@runtime_checkable
class FusableDevice(Device, Protocol):
    """A device whose kind can answer together, where devices share a process."""

    @classmethod
    def fuse(cls, clients: Mapping[int, object]) -> DeviceGroup:
        """Make a group of devices, given by client key.

        Raises
        ------
        ConfigError
            If they cannot answer together.
        """


class Transport(Protocol):
    """Carries requests to nodes and brings back their replies.

    A node is an address: Flower's node id, or the client key where there is no Flower.
    """

    @property
    def name(self) -> str:
        """The transport's name in a run's records."""

    @property
    def refused(self) -> Mapping[str, int]:
        """What it refused so far, by reason; empty where Flower itself lets nobody in."""

    def nodes(self) -> list[int]:
        """Return the nodes that can be reached now, in ascending order.

        Those that were lost are not among them, nor those that have not answered in time,
        until they have answered, or are back. It costs a live connection next to nothing,
        and Flower messages a request to the SuperLink.
        """

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        """Ask each node for its description, with the bound that `exchange` has."""

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        """Send each node its request and wait for its reply.

        What one node does, or does not do, changes nothing for the others. An answer that
        comes after its time is dropped.

        Parameters
        ----------
        requests : mapping of int to StepRequest
            Requests by node.
        timeout_s : float
            Bound on the wait for all of them, in seconds.

        Returns
        -------
        Answers of StepReply
            Each reply belongs to its request; its values are not checked yet.

        Raises
        ------
        PslError
            For what is no node's doing: a request that is longer than they accept.
        """

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Say what nodes will be asked for after the next exchange.

        They load their batches while the server computes, if the transport can tell them at
        all; nothing depends on it, and nothing is awaited.

        Parameters
        ----------
        steps : mapping of int to StepId
            The step after the next exchange, of each node that takes part in it.
        """


@runtime_checkable
class OverlappingTransport(Transport, Protocol):
    """A transport that carries some requests and replies while others are still computed."""

    def exchange_in_portions(
        self,
        portions: Iterable[Mapping[int, StepRequest]],
        timeout_s: float,
        on_reply: Callable[[StepReply], None],
    ) -> Answers[StepReply]:
        """Do as `exchange`, and let the caller compute in between.

        Parameters
        ----------
        portions : iterable of mappings of int to StepRequest
            Requests by node; each portion is sent as soon as it is made, before the next is.
        timeout_s : float
            Bound on the whole exchange, in seconds; what the caller computes counts.
        on_reply : callable
            Is called with each reply that belongs to its request, when it comes, in this
            thread.
        """


def ignore_reply(reply: object) -> None:
    """Do nothing when a reply comes: all of them are wanted together."""


def exchange_in_portions(
    transport: Transport,
    portions: Iterable[Mapping[int, StepRequest]],
    timeout_s: float,
    on_reply: Callable[[StepReply], None] = ignore_reply,
) -> Answers[StepReply]:
    """Exchange as `OverlappingTransport` does, over any transport.

    One that cannot overlap is given all portions at once, and tells of all replies at the end,
    in the order of the requests.
    """
    if isinstance(transport, OverlappingTransport):
        return transport.exchange_in_portions(portions, timeout_s, on_reply)
    requests = {node: request for portion in portions for node, request in portion.items()}
    answers = transport.exchange(requests, timeout_s)
    for reply in answers.replies.values():
        on_reply(reply)
    return answers
