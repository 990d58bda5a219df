"""How requests travel: the interface that the server sees, whatever carries them."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from flower_psl.wire import DescribeReply, StepReply, StepRequest


class Device(Protocol):
    """What answers requests: a device, or something that plays one."""

    def describe(self) -> DescribeReply:
        """Say who it is, what data it has and which segment it runs."""

    def handle(self, request: StepRequest) -> StepReply:
        """Answer one request of a step."""


class Transport(Protocol):
    """Carries requests to nodes and brings back their replies.

    A node is an address: Flower's node id, or the client key where there is no Flower.
    """

    @property
    def name(self) -> str:
        """The transport's name in a run's records."""

    def nodes(self) -> list[int]:
        """Return the nodes that can be reached now, in ascending order."""

    def describe(self, nodes: Iterable[int], timeout_s: float) -> dict[int, DescribeReply]:
        """Ask each node for its description.

        Raises
        ------
        ClientError, WaitError
            As `exchange` does.
        """

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> dict[int, StepReply]:
        """Send each node its request and return all replies.

        Parameters
        ----------
        requests : mapping of int to StepRequest
            Requests by node.
        timeout_s : float
            Bound on the wait for all of them, in seconds.

        Returns
        -------
        dict of int to StepReply
            Replies by node, in the order of the requests. Each belongs to its request;
            its values are not checked yet.

        Raises
        ------
        ClientError
            As soon as one node answers with an error.
        ProtocolError
            If a reply is not one, or belongs to another request.
        WaitError
            If replies are missing after `timeout_s`.
        """
