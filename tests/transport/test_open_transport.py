import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from flower_psl import ClientError, ConfigError, WaitError
from flower_psl.transport import StreamSettings, Transport
from flower_psl.transport.open_transport import open_transport
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_ticket import TICKET, Ticket
from flower_psl.transport.stream_tls import make_certificate
from flower_psl.wire import Phase, StepId, StepRequest

if TYPE_CHECKING:
    from tests.conftest import Answer, FakeGrid
    from tests.transport.conftest import Echo, Serving


class Handler:
    """A node whose handler serves until the session ends, and then answers."""

    def __init__(self, node: int, echo: "type[Echo]", serving: "type[Serving]") -> None:
        self._node = node
        self._echo = echo
        self._make_serving = serving
        self.serving: Serving | None = None
        self.ticket: Ticket | None = None

    def __call__(self, message: Message) -> Message | None:
        if self.serving is None:
            self.ticket = Ticket.from_values(message.content.config_records[TICKET])
            client = StreamClient(self.ticket)
            client.add(self._node, self.ticket.token, self._echo(self._node % 1000))
            self.serving = self._make_serving(client)
        if not self.serving.done():
            return None
        metrics = MetricRecord({"num-requests": self.serving.answered()})
        return Message(RecordDict({"psl-session": metrics}), reply_to=message)


def silent(message: Message) -> None:
    return None


def failing(message: Message) -> Message:
    return Message(Error(code=2, reason="  no module named grpc\n"), reply_to=message)


@pytest.fixture
def handler(make_echo: "type[Echo]", make_serving: "type[Serving]") -> Callable[[int], Handler]:
    return lambda node: Handler(node, make_echo, make_serving)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StreamServer]]:
    """Keep the servers that are started; in the end none may run."""
    started: list[StreamServer] = []
    start = StreamServer.start

    def keep(self: StreamServer) -> int:
        started.append(self)
        return start(self)

    monkeypatch.setattr(StreamServer, "start", keep)
    monkeypatch.setattr("flower_psl.transport.open_transport._CLOSING_TIMEOUT_S", 0.3)
    yield started
    assert not any(server._thread.is_alive() for server in started)


def opened(grid: "FakeGrid", name: Any, **settings: Any) -> AbstractContextManager[Transport]:
    """Open a transport that needs all nodes, or `min_nodes`."""
    min_nodes = settings.pop("min_nodes", len(grid.nodes))
    return open_transport(
        grid, name, StreamSettings(**settings), min_nodes=min_nodes, node_timeout_s=5
    )


def test_messages_start_no_server(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer]
) -> None:
    grid = fake_grid({1: failing})
    with opened(grid, "messages") as transport:
        assert transport.name == "messages"
    assert (servers, grid.pushed) == ([], [])


@pytest.mark.parametrize("name", ["stream", "auto"])
def test_a_stream_is_opened_and_closed_with_the_block(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    name: str,
) -> None:
    nodes = {4: handler(4), 2**63: handler(2**63)}
    grid = fake_grid({**nodes})
    with opened(grid, name, reconnect_timeout_s=7) as transport:
        assert transport.name == "stream"
        assert transport.nodes() == [4, 2**63]
        keys = {n: each.client_key for n, each in transport.describe([2**63, 4], 20).all().items()}
        assert keys == {2**63: 2**63 % 1000, 4: 4}
    for message in grid.pushed:
        assert message.metadata.message_type == "train.psl_session"
        assert message.metadata.ttl == 30 * 24 * 3600
    tickets = {node: each.ticket for node, each in nodes.items()}
    for ticket in tickets.values():
        assert ticket is not None
        assert (ticket.reconnect_timeout_s, ticket.max_frame_bytes) == (7.0, 10**9)
        assert ticket.address.startswith("127.0.0.1:")
        assert len(bytes.fromhex(ticket.token)) == 32
    assert len({ticket.token for ticket in tickets.values() if ticket}) == 2
    for each in nodes.values():
        assert each.serving is not None
        assert each.serving.answered() == 1
    assert len(servers) == 1


def test_the_answers_of_ended_sessions_are_awaited(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = fake_grid({1: handler(1), 2: handler(2)})
    with opened(grid, "stream"):
        pulls = len(grid.pulls)
    assert len(grid.pulls) > pulls
    assert not caplog.records


def test_a_node_that_does_not_end_its_session_is_named(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    two = handler(2)

    def held(message: Message) -> None:
        two(message)

    with opened(fake_grid({1: handler(1), 2: held}), "stream"):
        pass
    assert "nodes [2] have not ended their sessions within 0.3 s" in caplog.text


class Mortal:
    """A node whose process ends with the first request of a step, once."""

    def __init__(self, node: int, echo: "type[Echo]", serving: "type[Serving]") -> None:
        self._node = node
        self._echo = echo
        self._make_serving = serving
        self.servings: dict[str, Serving] = {}

    def __call__(self, message: Message) -> Message | None:
        name = message.metadata.message_id
        if name not in self.servings:
            ticket = Ticket.from_values(message.content.config_records[TICKET])
            client = StreamClient(ticket)
            client.add(self._node, ticket.token, self._echo(self._node, during=self._during))
            self.servings[name] = self._make_serving(client)
        serving = self.servings[name]
        if not serving.done():
            return None
        if serving.error() is None:
            return Message(RecordDict(), reply_to=message)
        return Message(Error(code=2, reason="the process is gone"), reply_to=message)

    def _during(self, request: StepRequest) -> None:
        if len(self.servings) == 1:
            raise SystemExit


def test_a_node_whose_process_was_killed_comes_back(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    make_echo: "type[Echo]",
    make_serving: "type[Serving]",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("flower_psl.transport.session_keeper._PERIOD_S", 0.02)
    caplog.set_level(logging.INFO, "flwr.psl")
    mortal = Mortal(2, make_echo, make_serving)
    grid = fake_grid({1: handler(1), 2: mortal})
    requests = {
        node: StepRequest(phase=Phase.FORWARD, id=StepId(0, 1, 0, 1, node, 0, 1))
        for node in (1, 2)
    }
    with opened(grid, "stream", reconnect_timeout_s=0.3) as transport:
        assert isinstance(transport, StreamTransport)
        answers = transport.exchange(requests, 20)
        assert list(answers.replies) == [1]
        assert isinstance(answers.failures[2], ClientError)
        while transport.nodes() != [1, 2]:
            assert transport.await_node(20), "it did not come back"
        assert transport.exchange(requests, 20).failures == {}
    assert [message.metadata.dst_node_id for message in grid.pushed] == [1, 2, 2]
    assert "nodes [2] are asked to open their streams again" in caplog.text
    assert "have not ended" not in caplog.text


def test_a_node_that_was_not_there_when_the_stream_opened_comes_later(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("flower_psl.transport.session_keeper._PERIOD_S", 0.02)
    caplog.set_level(logging.INFO, "flwr.psl")
    grid = fake_grid({1: handler(1)})
    late = handler(2)
    with opened(grid, "stream") as transport:
        assert isinstance(transport, StreamTransport)
        assert transport.nodes() == [1]
        grid.nodes[2] = late
        while transport.nodes() != [1, 2]:
            assert transport.await_node(20), "it did not come"
        assert set(transport.describe([1, 2], 20).all()) == {1, 2}
    assert [message.metadata.dst_node_id for message in grid.pushed] == [1, 2]
    assert late.serving is not None
    assert late.serving.answered() == 1
    assert "nodes [2] are new, and asked to open their streams" in caplog.text


def test_a_new_node_that_never_comes_is_not_awaited_at_the_end(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("flower_psl.transport.session_keeper._PERIOD_S", 0.02)
    asked = threading.Event()
    grid = fake_grid({1: handler(1)})
    with opened(grid, "stream"):
        grid.nodes[2] = lambda message: asked.set()
        assert asked.wait(20)
    assert "have not ended" not in caplog.text


def test_a_block_that_raises_closes_the_stream_too(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    node = handler(1)
    with pytest.raises(ZeroDivisionError), opened(fake_grid({1: node}), "stream"):
        _ = 1 / 0
    assert node.serving is not None
    assert node.serving.answered() == 0


def test_the_server_stops_even_if_the_grid_is_gone(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    grid = fake_grid({1: handler(1)})

    def gone(_: list[Message]) -> list[Message]:
        raise ConnectionError("no SuperLink")

    with pytest.raises(ConnectionError, match="no SuperLink"), opened(grid, "stream"):
        grid.__dict__["pull"] = gone
    assert len(servers) == 1


PROBLEMS: "dict[str, tuple[Answer, str]]" = {
    "silent": (
        silent,
        r"1 of 2 nodes opened no stream \(9\), and for 0\.3 s none has; they must be able to "
        r"reach the server\. Set the stream's address, or advertise the one they see\.",
    ),
    "failing": (failing, r"node 9 opened no stream: no module named grpc\."),
}


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_auto_goes_on_with_messages_and_says_why_once(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    caplog: pytest.LogCaptureFixture,
    problem: str,
) -> None:
    answer, reason = PROBLEMS[problem]
    node = handler(1)
    caplog.set_level(logging.WARNING)
    grid = fake_grid({1: node, 9: answer})
    with opened(grid, "auto", connect_timeout_s=0.3, min_nodes=1) as transport:
        assert transport.name == "messages"
        assert not any(server._thread.is_alive() for server in servers)
        # The node that had connected was told that it is over.
        assert node.serving is not None
        assert node.serving.answered() == 0
    [said] = [r.getMessage() for r in caplog.records if "opened no stream" in r.getMessage()]
    assert re.fullmatch(reason + r" The run goes on with Flower messages\.", said)
    assert len(servers) == 1


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_a_stream_that_cannot_be_opened_is_an_error(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    problem: str,
) -> None:
    answer, reason = PROBLEMS[problem]
    grid = fake_grid({1: handler(1), 9: answer})
    with pytest.raises(WaitError, match=reason), opened(grid, "stream", connect_timeout_s=0.3):
        pass
    assert len(servers) == 1


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_a_stream_goes_on_with_as_many_as_it_needs_and_says_once_who_is_missing(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    problem: str,
) -> None:
    monkeypatch.setattr("flower_psl.transport.session_keeper._PERIOD_S", 0.02)
    monkeypatch.setattr("flower_psl.transport.flower_sessions._FORGOTTEN_S", 0.0)
    answer, reason = PROBLEMS[problem]
    caplog.set_level(logging.WARNING)
    grid = fake_grid({1: handler(1), 9: answer})
    with opened(grid, "stream", connect_timeout_s=0.3, min_nodes=1) as transport:
        assert isinstance(transport, StreamTransport)
        assert transport.nodes() == [1]
        [said] = [r.getMessage() for r in caplog.records if "opened no stream" in r.getMessage()]
        assert re.fullmatch(reason + r" The run goes on with the others\.", said)
        grid.nodes[9] = handler(9)  # it is mended, and asked again
        while transport.nodes() != [1, 9]:
            assert transport.await_node(20), "it did not come"
    assert "have not ended" not in caplog.text


def test_a_message_that_the_superlink_does_not_take_names_the_node(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    grid = fake_grid({1: handler(1), 2: handler(2)})
    push = grid.push_messages

    def push_first(messages: Iterable[Message]) -> list[str | None]:
        return [*push(list(messages)[:1]), None]

    grid.__dict__["push_messages"] = push_first
    reason = "node 2 opened no stream: the SuperLink did not take its session message"
    with pytest.raises(WaitError, match=reason), opened(grid, "stream"):
        pass


def test_too_few_nodes_are_an_error(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer]
) -> None:
    with (
        pytest.raises(WaitError, match="1 nodes after 0 s; min_available_nodes is 2"),
        open_transport(
            fake_grid({1: silent}), "stream", StreamSettings(), min_nodes=2, node_timeout_s=0
        ),
    ):
        pass
    assert servers == []


def test_the_advertised_address_is_the_tickets(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    node = handler(1)
    with opened(fake_grid({1: node}), "stream", address="0.0.0.0:0", advertise="127.0.0.1:0"):
        pass
    assert node.ticket is not None
    host, port = node.ticket.address.split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_a_users_certificate_is_in_the_ticket_with_the_name_to_check(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], tmp_path: Path
) -> None:
    made, root = make_certificate(), make_certificate()
    contents = {
        "certificate_file": made.certificate,
        "key_file": made.key,
        "root_certificates_file": root.certificate,
    }
    files = {name: str(tmp_path / name) for name in contents}
    for name, content in contents.items():
        Path(files[name]).write_bytes(content)
    tickets = []

    def keep(message: Message) -> None:
        tickets.append(Ticket.from_values(message.content.config_records[TICKET]))

    grid = fake_grid({1: keep})
    with pytest.raises(WaitError), opened(grid, "stream", connect_timeout_s=0.3, **files):
        pass
    assert {(ticket.certificate, ticket.server_name) for ticket in tickets} == {
        (root.certificate.decode(), "")
    }


def test_files_that_cannot_be_used_are_refused_before_anything_starts(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer]
) -> None:
    grid = fake_grid({})
    settings = {"certificate_file": "/no/such.crt", "key_file": "/no/such.key"}
    with (
        pytest.raises(ConfigError, match=r"certificate_file is '/no/such\.crt', but No such file"),
        opened(grid, "auto", **settings),
    ):
        pass
    assert (servers, grid.pushed) == ([], [])


def test_plain_text_is_spoken_if_it_is_asked_for(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    nodes = {1: handler(1), 2: handler(2)}
    with opened(fake_grid({**nodes}), "stream", plain_text=True) as transport:
        assert set(transport.describe([1, 2], 20).all()) == {1, 2}
    tickets = [each.ticket for each in nodes.values() if each.ticket]
    assert [(ticket.certificate, ticket.server_name) for ticket in tickets] == [("", "")] * 2


def test_each_run_has_a_session_of_its_own(
    fake_grid: "type[FakeGrid]", servers: list[StreamServer], handler: Callable[[int], Handler]
) -> None:
    sessions = []
    for _ in range(2):
        nodes = {1: handler(1), 2: handler(2)}
        with opened(fake_grid({**nodes}), "stream", plain_text=True):
            pass
        sessions.append({each.ticket.session for each in nodes.values() if each.ticket})
    assert [len(of_run) for of_run in sessions] == [1, 1]
    assert sessions[0] != sessions[1]


@pytest.mark.parametrize("fails", [False, True], ids=["a run", "a run that fails"])
def test_what_was_refused_is_said_once_at_the_end(
    fake_grid: "type[FakeGrid]",
    servers: list[StreamServer],
    handler: Callable[[int], Handler],
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    with (
        suppress(ZeroDivisionError),
        opened(fake_grid({1: handler(1)}), "stream") as transport,
    ):
        assert transport.refused == {}
        servers[0].refused.update({"wrong token": 2, "malformed frame": 1})
        assert transport.refused == {"wrong token": 2, "malformed frame": 1}
        _ = 1 / (not fails)
    assert [record.getMessage() for record in caplog.records] == [
        "refused on the stream: 1 x malformed frame, 2 x wrong token"
    ]
