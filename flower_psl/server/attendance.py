"""Who is there: clients that fail are left out, and come back when they report again."""

import logging
from collections.abc import Mapping, Sequence

from flower_psl.errors import ClientError, ProtocolError, PslError, WaitError
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.ledger import Ledger
from flower_psl.server.participants import Participants
from flower_psl.transport import Transport
from flower_psl.wire import DescribeReply

_LOG = logging.getLogger("flwr.psl")

# A client that is there describes itself within this, or waits for its next chance.
_REPORT_TIMEOUT_S = 15.0


class Attendance:
    """Keeps count of who is there, in a run's ledger.

    Parameters
    ----------
    transport : Transport
        What reaches the clients.
    participants : Participants
        All clients of the run.
    policy : FailurePolicy
        What becomes of clients that fail.
    ledger : Ledger
        Who is out, and what they did.

    Attributes
    ----------
    nodes : dict of int to int
        Where each client key is reached. A client may come back as another node.
    """

    def __init__(
        self,
        transport: Transport,
        participants: Participants,
        policy: FailurePolicy,
        ledger: Ledger,
    ) -> None:
        self._transport = transport
        self._participants = participants
        self._policy = policy
        self._ledger = ledger
        self.nodes = dict(participants.nodes)

    @property
    def present(self) -> list[int]:
        """Keys of the clients with training data that are there."""
        counts = self._participants.num_examples
        return [key for key, count in counts.items() if count and key not in self._ledger.out]

    def leave_out(self, failures: Mapping[int, PslError]) -> None:
        """Leave out clients that failed.

        Raises
        ------
        PslError
            If fewer clients are left than the policy asks for; of the kind of the first
            failure, whose message it begins with.
        """
        self.note(failures)
        if failures:
            self._require_enough(list(failures.values()))

    def note(self, failures: Mapping[int, PslError]) -> None:
        """Leave out clients that failed, however few that leaves.

        Some of those that are out already may come back before the next step.
        """
        for key, failure in failures.items():
            self._note(key, failure)

    def require_enough(self) -> None:
        """Refuse to go on with fewer clients than the policy asks for.

        Raises
        ------
        ClientError
            If there are; it begins with why the first one is out.
        """
        self._require_enough([ClientError(reason) for reason in self._ledger.out.values()])

    def _require_enough(self, failures: Sequence[PslError]) -> None:
        present, wanted = len(self.present), self._policy.min_clients
        if present >= wanted:
            return
        if not failures:
            raise ClientError(
                f"{present} clients have training data; FailurePolicy.min_clients is {wanted}. "
                "Start more devices that have some, or lower it."
            )
        cause = failures[0]
        more = f" (and {len(failures) - 1} more, see the log)" if len(failures) > 1 else ""
        raise type(cause)(
            f"{str(cause).rstrip('.')}{more}. That leaves {present} of the clients with training "
            f"data; FailurePolicy.min_clients is {wanted}. Look at the log of each device that "
            f"failed, start it again, and then the run.{self._about_banned()}"
        ) from cause

    def take_back(self) -> dict[int, bool]:
        """Take back clients that report again.

        One that has failed n times in a row, without an accepted step in between, rests for
        2^(n - 1) - 1 accepted steps first.

        Returns
        -------
        dict of int to bool
            For each client that is back, whether it still has what it trained by itself.
        """
        waiting = self._may_return()
        if not waiting:
            return {}
        # Others may have come back as nodes that nobody knows yet.
        pointless = {node for key, node in self.nodes.items() if key not in waiting}
        nodes = [node for node in self._transport.nodes() if node not in pointless]
        if not nodes:
            return {}
        timeout_s = min(self._policy.step_timeout_s, _REPORT_TIMEOUT_S)
        answers = self._transport.describe(nodes, timeout_s)
        for key in waiting:
            if (failure := answers.failures.get(self.nodes[key])) is not None:
                self._note(key, failure)
        back: dict[int, bool] = {}
        for node, description in answers.replies.items():
            key_or_none = self._participants.key_of(node, description)
            if key_or_none in waiting and self._take_back(key_or_none, node, description):
                back[key_or_none] = description.has_segment
        return back

    def _is_banned(self, key: int) -> bool:
        # By the policy of now: a run that is resumed may have another.
        return self._ledger.offences.get(key, 0) >= self._policy.max_offences

    def _about_banned(self) -> str:
        banned = sorted(filter(self._is_banned, self._ledger.out))
        if not banned:
            return ""
        return (
            f" Clients {banned} are out for good, with FailurePolicy.max_offences at "
            f"{self._policy.max_offences}: a resumed run takes one back if that is raised."
        )

    def _may_return(self) -> set[int]:
        ledger = self._ledger
        return {
            key
            for key in ledger.out
            if not self._is_banned(key) and ledger.rests_until.get(key, 0) <= ledger.accepted_steps
        }

    def _take_back(self, key: int, node: int, description: DescribeReply) -> bool:
        try:
            self._participants.check_same(key, node, description)
        except ClientError as error:
            self._note(key, error)
            return False
        self.nodes[key] = node
        del self._ledger.out[key]
        _LOG.info("client %d, node %d: it is back and takes part again", key, node)
        return True

    def _note(self, key: int, failure: PslError) -> None:
        ledger = self._ledger
        reason = _reason(failure)
        ledger.out[key] = str(failure)
        counts = ledger.failures.setdefault(key, {})
        counts[reason] = counts.get(reason, 0) + 1
        row = ledger.in_a_row[key] = ledger.in_a_row.get(key, 0) + 1
        ledger.rests_until[key] = ledger.accepted_steps + 2 ** min(row - 1, 30) - 1
        if isinstance(failure, ProtocolError):
            ledger.offences[key] = ledger.offences.get(key, 0) + 1
        _LOG.warning(
            "client %d is left out%s (%s): %s",
            key,
            " for good" if self._is_banned(key) else "",
            reason,
            failure,
        )


def _reason(failure: PslError) -> str:
    """Return a failure's kind, as records name it."""
    if isinstance(failure, WaitError):
        return "late"
    if isinstance(failure, ProtocolError):
        return "unusable"
    return "failed or lost"
