import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from torch import nn

from flower_psl import ClientError, FailurePolicy, ProtocolError, PslError, WaitError
from flower_psl.server.attendance import Attendance
from flower_psl.server.ledger import Ledger
from flower_psl.server.participants import Participants
from flower_psl.transport import Answers
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest, segment_spec

SEGMENT = segment_spec(nn.Linear(3, 2).named_parameters())
NODES = {2: 102, 5: 105, 9: 109}


def description(key: int | None, **changes: object) -> DescribeReply:
    fields: dict[str, object] = {"client_key": key, **changes}
    honest = DescribeReply(
        client_key=None, num_examples=10, num_test_examples=4, segment=SEGMENT, has_optimizer=True
    )
    return replace(honest, **fields)  # type: ignore[arg-type]


class Described:
    """Nodes that describe themselves, or fail to."""

    name = "described"

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self.answers: dict[int, DescribeReply | PslError] = {
            node: description(key) for key, node in NODES.items()
        }
        self.asked: list[list[int]] = []
        self.timeout_s = 0.0

    def nodes(self) -> list[int]:
        return sorted(self.answers)

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        self.asked.append(list(nodes))
        self.timeout_s = timeout_s
        return Answers.of(self.asked[-1], self.answers)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        raise NotImplementedError

    def announce(self, steps: Mapping[int, StepId]) -> None:
        raise NotImplementedError


class Meeting:
    """Three clients with data and one without."""

    def __init__(self, *, have_keys: bool = True, **policy: float) -> None:
        self.ledger = Ledger()
        self.transport = Described()
        counts = dict.fromkeys(NODES, 10)
        participants = Participants(
            nodes=NODES,
            num_examples={**counts, 11: 0},
            num_test_examples=dict.fromkeys(NODES, 4),
            segment=SEGMENT,
            need_optimizers=True,
            have_keys=have_keys,
        )
        failures = FailurePolicy(**policy)  # type: ignore[arg-type]
        self.attendance = Attendance(self.transport, participants, failures, self.ledger)

    def fail(self, key: int, error: PslError | None = None) -> None:
        self.attendance.leave_out({key: error or ClientError("gone")})


def test_who_fails_is_out_and_comes_back_when_it_reports(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meeting = Meeting(step_timeout_s=7.0)
    attendance = meeting.attendance
    assert attendance.present == [2, 5, 9]
    with caplog.at_level(logging.INFO, "flwr.psl"):
        meeting.fail(5, WaitError("client 5, round 1, step 2: no reply"))
        assert attendance.present == [2, 9]
        assert meeting.ledger.out == {5: "client 5, round 1, step 2: no reply"}
        assert attendance.take_back() == {5: False}
    assert meeting.transport.asked == [[105]]
    assert meeting.transport.timeout_s == 7.0
    assert attendance.present == [2, 5, 9]
    assert "client 5 is left out (late): client 5, round 1, step 2: no reply" in caplog.text
    assert "client 5, node 105: it is back and takes part again" in caplog.text
    assert meeting.ledger.failures == {5: {"late": 1}}


def test_nobody_is_asked_while_all_are_there() -> None:
    meeting = Meeting()
    assert meeting.attendance.take_back() == {}
    assert meeting.transport.asked == []


def test_who_cannot_be_reached_is_not_asked() -> None:
    meeting = Meeting()
    meeting.fail(5)
    del meeting.transport.answers[105]
    assert meeting.attendance.take_back() == {}
    assert meeting.transport.asked == []


def test_a_client_may_come_back_as_another_node_with_what_it_trained() -> None:
    meeting = Meeting()
    meeting.fail(5)
    meeting.transport.answers.pop(105)
    meeting.transport.answers[777] = description(5, has_segment=True)
    assert meeting.attendance.take_back() == {5: True}
    assert meeting.attendance.nodes == {**NODES, 5: 777}


def test_a_client_that_nobody_knows_is_no_client() -> None:
    meeting = Meeting()
    meeting.fail(5)
    meeting.transport.answers = {888: description(6)}
    assert meeting.attendance.take_back() == {}
    assert meeting.attendance.nodes == NODES


def test_without_keys_a_node_is_known_by_its_id() -> None:
    meeting = Meeting(have_keys=False)
    meeting.fail(5)
    meeting.transport.answers[105] = description(None)
    meeting.transport.answers[888] = description(None)
    assert meeting.attendance.take_back() == {5: False}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_examples": 9}, "it came back with 9 training examples, and had 10; data must keep"),
        ({"num_test_examples": 5}, "it came back with 5 test examples, and had 4; data must"),
        ({"segment": {}}, "its client segment is not the server's: weight is missing"),
        ({"has_optimizer": False}, "its SplitClient has no optimizer_fn"),
    ],
)
def test_a_client_that_is_another_than_it_was_stays_out(
    changes: dict[str, object], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = Meeting()
    meeting.fail(5)
    meeting.transport.answers[105] = description(5, **changes)
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        assert meeting.attendance.take_back() == {}
    assert "client 5 is left out (failed or lost): " in caplog.text
    assert text in caplog.text
    assert meeting.ledger.in_a_row == {5: 2}


def test_who_fails_again_and_again_rests_longer_each_time() -> None:
    meeting = Meeting()
    came_back_after = []
    for _ in range(5):
        meeting.fail(5)
        failed_at = meeting.ledger.accepted_steps
        while not meeting.attendance.take_back():
            meeting.ledger.accepted_steps += 1
        came_back_after.append(meeting.ledger.accepted_steps - failed_at)
    assert came_back_after == [0, 1, 3, 7, 15]
    meeting.ledger.used = {5: 0}
    meeting.ledger.accept({5: 1}, loss=0.0)
    meeting.fail(5)
    assert meeting.attendance.take_back() == {5: False}


def test_a_node_that_fails_to_report_has_failed_again() -> None:
    meeting = Meeting()
    meeting.fail(5)
    meeting.transport.answers[105] = WaitError("node 105, describing itself: no reply")
    assert meeting.attendance.take_back() == {}
    assert meeting.ledger.in_a_row == {5: 2}
    assert meeting.ledger.rests_until == {5: 1}


def test_values_that_cannot_be_used_are_forgiven_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meeting = Meeting(max_offences=2)
    meeting.fail(5, ProtocolError("NaN"))
    meeting.ledger.accepted_steps = 9
    assert meeting.attendance.take_back() == {5: False}
    meeting.fail(5, ClientError("gone"))
    meeting.ledger.accepted_steps = 99
    assert meeting.attendance.take_back() == {5: False}
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        meeting.fail(5, ProtocolError("NaN"))
    assert "client 5 is left out for good (unusable): NaN" in caplog.text
    meeting.ledger.accepted_steps = 10**6
    assert meeting.attendance.take_back() == {}
    assert meeting.ledger.failures == {5: {"unusable": 2, "failed or lost": 1}}


def test_who_is_banned_or_rests_is_not_asked_while_another_is_out() -> None:
    meeting = Meeting(max_offences=1)
    meeting.fail(2, ProtocolError("NaN"))
    meeting.fail(5)
    meeting.fail(5)
    meeting.attendance.note({9: ClientError("gone")})
    assert meeting.attendance.take_back() == {9: False}
    assert meeting.transport.asked == [[109]]
    meeting.ledger.accepted_steps = 1
    assert meeting.attendance.take_back() == {5: False}
    assert meeting.transport.asked == [[109], [105]]


def test_a_client_whose_node_another_has_taken_is_still_found() -> None:
    meeting = Meeting(max_offences=1)
    meeting.fail(2, ProtocolError("NaN"))
    meeting.fail(5)
    meeting.transport.answers[777] = description(5)
    del meeting.transport.answers[105]
    assert meeting.attendance.take_back() == {5: False}
    assert meeting.transport.asked == [[777]]


def test_too_few_clients_end_the_run_with_the_first_failure() -> None:
    meeting = Meeting(min_clients=2)
    meeting.fail(5)
    with pytest.raises(
        ProtocolError,
        match=r"^client 2, round 1, step 2: NaN \(and 1 more, see the log\)\. That leaves 0 of "
        r"the clients with training data; FailurePolicy.min_clients is 2\. Look at .* start it",
    ):
        meeting.attendance.leave_out(
            {2: ProtocolError("client 2, round 1, step 2: NaN."), 9: ClientError("gone")}
        )


def test_too_few_clients_are_found_without_another_failure() -> None:
    meeting = Meeting(min_clients=2)
    meeting.attendance.note({5: WaitError("client 5: no reply"), 9: ClientError("gone")})
    with pytest.raises(
        ClientError,
        match=r"^client 5: no reply \(and 1 more, see the log\)\. That leaves 1 of the clients",
    ):
        meeting.attendance.require_enough()
    assert meeting.attendance.take_back() == {5: False, 9: False}
    meeting.attendance.require_enough()


def test_a_run_that_has_too_few_clients_from_the_start_is_refused() -> None:
    with pytest.raises(ClientError, match=r"3 clients have training data; .* is 4\. Start more"):
        Meeting(min_clients=4).attendance.require_enough()


def test_nobody_rests_beyond_a_restart() -> None:
    meeting = Meeting()
    meeting.fail(5)
    meeting.fail(5)
    assert meeting.attendance.take_back() == {}
    meeting.ledger.end_rests()
    assert meeting.attendance.take_back() == {5: False}


def test_a_run_goes_on_with_as_many_as_it_needs() -> None:
    meeting = Meeting(min_clients=2)
    meeting.fail(5)
    meeting.attendance.leave_out({})
    assert meeting.attendance.present == [2, 9]
