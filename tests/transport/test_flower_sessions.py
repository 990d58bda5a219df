from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from flwr.app import Error, Message, RecordDict

from flower_psl.transport import flower_sessions
from flower_psl.transport.flower_sessions import FlowerSessions, session_answer
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_ticket import TICKET, Ticket

if TYPE_CHECKING:
    from tests.conftest import Answer, FakeGrid, FakeTime

TIMEOUT_S = 60.0


class FakeStream(StreamTransport):
    """A stream to which nodes come by a script: at each wait, those that it yields next."""

    def __init__(self, clock: "FakeTime", coming: Iterable[Iterable[int]]) -> None:
        self._clock = clock
        self._coming: Iterator[Iterable[int]] = iter(coming)
        self._came: set[int] = set()

    def nodes(self) -> list[int]:
        return sorted(self._came)

    def await_node(self, timeout_s: float) -> bool:
        self._clock.now_s += timeout_s
        new = set(next(self._coming, ())) - self._came if timeout_s else set()
        self._came |= new
        return bool(new)


@pytest.fixture
def clock(fake_time: "FakeTime", monkeypatch: pytest.MonkeyPatch) -> "FakeTime":
    monkeypatch.setattr(flower_sessions, "time", fake_time)
    return fake_time


def tickets(nodes: Iterable[int]) -> dict[int, Ticket]:
    names = list(nodes)
    return {
        node: Ticket(
            address="127.0.0.1:1",
            session="s",
            certificate="c",
            server_name="",
            token=f"token {node}",
            reconnect_timeout_s=1.0,
            max_frame_bytes=1000,
            num_nodes=len(names),
        )
        for node in names
    }


def ticket_of(message: Message) -> Ticket:
    return Ticket.from_values(message.content.config_records[TICKET])


def silent(message: Message) -> None:
    return None


def left_to_others(times: int) -> Callable[[Message], Message]:
    """Return a node that is left to others some times, and then answers as one that serves."""
    left = iter([True] * times)
    return lambda message: Message(
        session_answer(left_to_others=next(left, False)), reply_to=message
    )


def test_every_node_gets_its_own_ticket(fake_grid: "type[FakeGrid]", clock: "FakeTime") -> None:
    grid = fake_grid({1: silent, 2: silent})
    expected = tickets([1, 2])
    assert FlowerSessions(grid, expected).open(FakeStream(clock, [[1, 2]]), TIMEOUT_S) == ""
    assert {m.metadata.dst_node_id: ticket_of(m) for m in grid.pushed} == expected
    assert {m.metadata.message_type for m in grid.pushed} == {"train.psl_session"}


def test_a_bounded_number_of_nodes_is_on_its_way(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes = range(300)
    grid = fake_grid(dict.fromkeys(nodes, silent))
    on_their_way: list[int] = []

    def come() -> Iterator[list[int]]:
        """Let half of those come that are on their way."""
        came: set[int] = set()
        while len(came) < len(nodes):
            asked = {message.metadata.dst_node_id for message in grid.pushed} - came
            on_their_way.append(len(asked))
            new = sorted(asked)[: (len(asked) + 1) // 2]
            came |= set(new)
            yield new

    assert FlowerSessions(grid, tickets(nodes)).open(FakeStream(clock, come()), TIMEOUT_S) == ""
    assert max(on_their_way) == on_their_way[0] == 128
    assert on_their_way[1] == 128
    assert Counter(message.metadata.dst_node_id for message in grid.pushed) == Counter(nodes)


class RestlessStream(FakeStream):
    """A stream on which something always happens, to nodes that have come."""

    def await_node(self, timeout_s: float) -> bool:
        super().await_node(timeout_s)
        return timeout_s > 0


def test_a_node_that_comes_again_and_again_does_not_lengthen_the_wait(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    started_s = clock.now_s
    sessions = FlowerSessions(fake_grid(dict.fromkeys([1, 2], silent)), tickets([1, 2]))
    problem = sessions.open(RestlessStream(clock, [[1]]), TIMEOUT_S)
    assert "1 of 2 nodes opened no stream (2), and for 60 s none has" in problem
    assert clock.now_s - started_s < TIMEOUT_S + 1


def test_a_node_that_was_left_to_others_is_asked_again(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: silent, 2: left_to_others(times=2)})
    stream = FakeStream(clock, [[], [1], [], [2]])
    assert FlowerSessions(grid, tickets([1, 2])).open(stream, TIMEOUT_S) == ""
    asked = [m for m in grid.pushed if m.metadata.dst_node_id == 2]
    assert len(asked) == 3
    assert {ticket_of(message).num_nodes for message in asked} == {2}


def test_nobody_may_leave_a_node_to_others_for_long(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: left_to_others(times=10**6)})
    started_s = clock.now_s

    def come() -> Iterator[list[int]]:
        while ticket_of(grid.pushed[-1]).num_nodes:
            yield []
        yield [1]

    assert FlowerSessions(grid, tickets([1])).open(FakeStream(clock, come()), TIMEOUT_S) == ""
    assert clock.now_s - started_s == pytest.approx(10.0, abs=0.6)


def test_the_bound_is_that_of_the_next_node(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid(dict.fromkeys(range(5), silent))
    started_s = clock.now_s

    def come() -> Iterator[list[int]]:
        for node in range(4):
            came_s = clock.now_s
            while clock.now_s < came_s + 0.9 * TIMEOUT_S:
                yield []
            yield [node]

    problem = FlowerSessions(grid, tickets(range(5))).open(FakeStream(clock, come()), TIMEOUT_S)
    assert problem == (
        "1 of 5 nodes opened no stream (4), and for 60 s none has; they must be able to reach "
        "the server. Set the stream's address, or advertise the one they see."
    )
    assert clock.now_s - started_s > 4 * TIMEOUT_S


def test_three_of_many_missing_nodes_are_named(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid(dict.fromkeys(range(5), silent))
    problem = FlowerSessions(grid, tickets(range(5))).open(FakeStream(clock, []), TIMEOUT_S)
    assert problem.startswith("5 of 5 nodes opened no stream (0, 1, 2, ...), and for 60 s")


def failing(message: Message) -> Message:
    return Message(Error(code=2, reason="the process is gone"), reply_to=message)


def test_enough_are_enough_and_who_is_missing_is_said_with_what_is_known(
    fake_grid: "type[FakeGrid]", clock: "FakeTime", caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[int, Answer] = dict.fromkeys(range(1, 8), failing)
    grid = fake_grid({**answers, 8: silent, 9: silent, 10: silent})
    stream = FakeStream(clock, [[], [9], [10]])
    assert FlowerSessions(grid, tickets(range(1, 11))).open(stream, TIMEOUT_S, enough=2) == ""
    [said] = [record.getMessage() for record in caplog.records]
    assert said == (
        "node 1 opened no stream: the process is gone. node 2 opened no stream: the process is "
        "gone. node 3 opened no stream: the process is gone. 4 more opened none for such "
        "reasons. 1 of 10 nodes opened no stream (8), and for 60 s none has; they must be able "
        "to reach the server. Set the stream's address, or advertise the one they see. The run "
        "goes on with the others."
    )


def test_a_node_whose_turn_did_not_come_is_asked_once_when_the_run_goes_on(
    fake_grid: "type[FakeGrid]", clock: "FakeTime", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_sessions, "_MOST_ON_THEIR_WAY", 1)
    grid = fake_grid(dict.fromkeys([1, 2, 3], silent))
    sessions = FlowerSessions(grid, tickets([1, 2, 3]))
    assert sessions.open(FakeStream(clock, [[1]]), TIMEOUT_S, enough=1) == ""
    sessions.call_back([2, 3])
    assert [message.metadata.dst_node_id for message in grid.pushed] == [1, 2, 3]


def test_nobody_is_waited_for_when_too_many_have_failed(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    started_s = clock.now_s
    grid = fake_grid({1: silent, 2: failing, 3: failing})
    sessions = FlowerSessions(grid, tickets([1, 2, 3]))
    problem = sessions.open(FakeStream(clock, []), TIMEOUT_S, enough=2)
    assert problem == (
        "node 2 opened no stream: the process is gone. node 3 opened no stream: the process is "
        "gone."
    )
    assert clock.now_s - started_s < 1


def test_what_a_node_says_of_its_failure_cannot_change_a_log(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    def lie(message: Message) -> Message:
        return Message(Error(code=2, reason="\x1b[2J\nINFO: all came"), reply_to=message)

    sessions = FlowerSessions(fake_grid({1: lie}), tickets([1]))
    problem = sessions.open(FakeStream(clock, []), TIMEOUT_S)
    assert problem == "node 1 opened no stream: \\x1b[2J\n    INFO: all came."


def test_a_lost_node_is_asked_again_when_its_message_has_been_answered(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes: dict[int, Answer] = {1: silent, 2: silent}
    grid = fake_grid(nodes)
    sessions = FlowerSessions(grid, tickets(nodes))
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    sessions.call_back([2])
    assert len(grid.pushed) == 2  # Flower still believes that a process holds the message
    nodes[2] = failing
    sessions.call_back([2])
    assert [message.metadata.dst_node_id for message in grid.pushed] == [1, 2, 2]
    assert ticket_of(grid.pushed[2]) == replace(ticket_of(grid.pushed[1]), num_nodes=0)
    nodes[2] = silent
    sessions.call_back([2])
    assert len(grid.pushed) == 3  # it is held again


def test_a_lost_node_that_was_started_anew_is_asked_again_after_a_while(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    """Its process ended in order and knows nothing of the message that it held."""
    grid = fake_grid({1: silent, 2: silent})
    sessions = FlowerSessions(grid, tickets([1, 2]))
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    for wait_s, pushed in ((0.0, 2), (89.0, 2), (1.0, 3), (0.0, 3), (89.0, 3), (1.0, 4)):
        clock.now_s += wait_s
        sessions.call_back([2])
        assert len(grid.pushed) == pushed
    assert {message.metadata.dst_node_id for message in grid.pushed[2:]} == {2}


def test_a_node_that_came_back_meanwhile_is_lost_for_as_long_as_that_again(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: silent})
    sessions = FlowerSessions(grid, tickets([1]))
    sessions.open(FakeStream(clock, [[1]]), TIMEOUT_S)
    sessions.call_back([1])
    clock.now_s += 60
    sessions.call_back([])
    sessions.call_back([1])
    clock.now_s += 60
    sessions.call_back([1])
    assert len(grid.pushed) == 1


def test_a_node_that_answers_that_it_cannot_serve_is_asked_from_time_to_time(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: silent, 2: failing})
    sessions = FlowerSessions(grid, tickets([1, 2]))
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    for wait_s, pushed in ((0.0, 3), (29.0, 3), (1.0, 4), (29.0, 4), (1.0, 5)):
        clock.now_s += wait_s
        sessions.call_back([2])
        assert len(grid.pushed) == pushed


class Doorkeeper:
    """Lets further nodes in, and remembers them."""

    def __init__(self) -> None:
        self.admitted: list[int] = []

    def __call__(self, new: Collection[int]) -> dict[int, Ticket]:
        self.admitted.extend(new)
        return tickets(new)


def test_nodes_that_were_not_there_before_are_asked_once(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes: dict[int, Answer] = {1: silent, 2: silent}
    grid, door = fake_grid(nodes), Doorkeeper()
    sessions = FlowerSessions(grid, tickets([1, 2]), door)
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    sessions.let_in()
    assert (door.admitted, len(grid.pushed)) == ([], 2)
    nodes[7] = silent
    for _ in range(2):
        sessions.let_in()
        assert door.admitted == [7]
        assert [message.metadata.dst_node_id for message in grid.pushed[2:]] == [7]
    assert ticket_of(grid.pushed[2]) == replace(tickets([7])[7], num_nodes=0)


def test_a_new_node_that_does_not_come_is_asked_like_a_lost_one(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes: dict[int, Answer] = {1: silent}
    grid = fake_grid(nodes)
    sessions = FlowerSessions(grid, tickets([1]), Doorkeeper())
    sessions.open(FakeStream(clock, [[1]]), TIMEOUT_S)
    nodes[7] = failing
    sessions.let_in()
    sessions.call_back([7])
    assert [message.metadata.dst_node_id for message in grid.pushed] == [1, 7, 7]


def test_new_nodes_are_as_many_as_there_are_connections_for(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes: dict[int, Answer] = {1: silent}
    grid, door = fake_grid(nodes), Doorkeeper()
    sessions = FlowerSessions(grid, tickets([1]), door)
    sessions.open(FakeStream(clock, [[1]]), TIMEOUT_S)
    nodes |= dict.fromkeys(range(100, 400), silent)
    for _ in range(2):
        sessions.let_in()
        assert door.admitted == list(range(100, 228))
    for gone in range(100, 110):  # they take no connections any more
        del nodes[gone]
    sessions.let_in()
    assert door.admitted == list(range(100, 238))


def test_a_lost_node_that_is_not_there_is_not_asked(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    nodes: dict[int, Answer] = {1: silent, 2: failing}
    grid = fake_grid(nodes)
    sessions = FlowerSessions(grid, tickets(nodes))
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    gone = nodes.pop(2)
    grid.pull = lambda asked: [gone(m) for m in asked if m.metadata.dst_node_id == 2]  # type: ignore[method-assign, misc]
    sessions.call_back([2])
    assert len(grid.pushed) == 2
    nodes[2] = silent
    sessions.call_back([2])
    assert len(grid.pushed) == 3


def test_as_long_as_nobody_is_lost_flower_is_asked_nothing(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: silent})
    sessions = FlowerSessions(grid, tickets([1]))
    sessions.open(FakeStream(clock, [[1]]), TIMEOUT_S)
    pulls = len(grid.pulls)
    sessions.call_back([])
    assert (len(grid.pulls), len(grid.pushed)) == (pulls, 1)


def test_the_ends_of_lost_nodes_are_not_awaited(
    fake_grid: "type[FakeGrid]", clock: "FakeTime", caplog: pytest.LogCaptureFixture
) -> None:
    nodes: dict[int, Answer] = {1: silent, 2: silent}
    grid = fake_grid(nodes)
    sessions = FlowerSessions(grid, tickets(nodes))
    sessions.open(FakeStream(clock, [[1, 2]]), TIMEOUT_S)
    nodes[1] = lambda message: Message(session_answer(3), reply_to=message)
    sessions.await_ends(TIMEOUT_S, absent=[2])
    assert clock.slept_s == []
    assert caplog.records == []


def test_an_answer_of_another_kind_is_no_reason_to_ask_again(
    fake_grid: "type[FakeGrid]", clock: "FakeTime"
) -> None:
    grid = fake_grid({1: lambda message: Message(RecordDict(), reply_to=message)})
    stream = FakeStream(clock, [[], [], [1]])
    assert FlowerSessions(grid, tickets([1])).open(stream, TIMEOUT_S) == ""
    assert len(grid.pushed) == 1
