"""What came of one exchange: from each node a reply, or what went wrong with it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flower_psl.errors import ProtocolError, PslError
from flower_psl.wire import StepReply, StepRequest, check_belongs

R = TypeVar("R")


@dataclass(frozen=True)
class Answers(Generic[R]):
    """Replies and failures of one exchange; every node that was asked is in one of them.

    Attributes
    ----------
    replies : dict of int to R
        Replies by node, in the order of the requests.
    failures : dict of int to PslError
        By node, in the order of the requests. A `ClientError`: the node said that it failed,
        could not be reached, or is lost. A `ProtocolError`: what it sent is not a reply to
        its request. A `WaitError`: it did not answer in time.
    """

    replies: dict[int, R]
    failures: dict[int, PslError]

    @classmethod
    def of(cls, nodes: Iterable[int], outcomes: Mapping[int, R | PslError]) -> "Answers[R]":
        """Sort out what came of each node.

        Parameters
        ----------
        nodes : iterable of int
            Who was asked, in order.
        outcomes : mapping of int to R or PslError
            Each one's reply, or failure.
        """
        replies: dict[int, R] = {}
        failures: dict[int, PslError] = {}
        for node in nodes:
            outcome = outcomes[node]
            if isinstance(outcome, PslError):
                failures[node] = outcome
            else:
                replies[node] = outcome
        return cls(replies, failures)

    def all(self) -> dict[int, R]:
        """Return the replies, of all nodes.

        Raises
        ------
        PslError
            The first failure, if there is one.
        """
        for failure in self.failures.values():
            raise failure
        return self.replies


def belonging(
    answers: Answers[StepReply], requests: Mapping[int, StepRequest]
) -> Answers[StepReply]:
    """Return the answers with each reply to another request as a failure of its node."""
    outcomes: dict[int, StepReply | PslError] = {**answers.failures, **answers.replies}
    for node, reply in answers.replies.items():
        try:
            check_belongs(reply, requests[node])
        except ProtocolError as error:
            outcomes[node] = error
    return Answers.of(requests, outcomes)
