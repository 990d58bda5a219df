import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import nn
from torch.utils.data import TensorDataset

from flower_psl import SplitClient, SplitClientApp
from flower_psl.client import split_client_app, stream_session
from flower_psl.client.client_cache import ClientCache
from flower_psl.client.stream_session import BackgroundSession, KeyedClient, in_simulation
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_ticket import TICKET, StreamSettings, Ticket
from flower_psl.transport.stream_tls import make_certificate
from flower_psl.wire import Phase, StepId, StepRequest


def make_client() -> SplitClient:
    return SplitClient(nn.Linear(2, 3), TensorDataset(torch.rand(6, 2), torch.arange(6)))


class Run:
    """The server's side of a run."""

    def __init__(self, *nodes: int) -> None:
        certificate = make_certificate()
        settings = StreamSettings(reconnect_timeout_s=2.0)
        self.server = StreamServer(settings, certificate)
        port = self.server.start()
        self.transport = StreamTransport(self.server, 2.0)
        self.tickets = {
            node: Ticket(
                address=f"127.0.0.1:{port}",
                certificate=certificate.certificate.decode(),
                token=token,
                reconnect_timeout_s=2.0,
                max_frame_bytes=10**6,
            )
            for node, token in self.server.admit(nodes).items()
        }

    def await_nodes(self, *nodes: int) -> None:
        while not set(nodes) <= set(self.transport.nodes()):
            assert self.transport.await_node(20), "no node came"

    def client_keys(self, *nodes: int) -> dict[int, int | None]:
        replies = self.transport.describe(nodes, 20)
        return {node: reply.client_key for node, reply in replies.items()}


@pytest.fixture
def make_run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(*nodes: int) -> Run:
        runs.append(Run(*nodes))
        return runs[-1]

    yield make
    for run in runs:
        run.server.goodbye()
        run.server.stop()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[StreamClient]:
    """Keep the connections that a background session makes."""
    made: list[StreamClient] = []

    def keep(ticket: Ticket) -> StreamClient:
        made.append(StreamClient(ticket))
        return made[-1]

    monkeypatch.setattr(stream_session, "StreamClient", keep)
    return made


def fake_ray(initialized: bool, actor: str | None) -> SimpleNamespace:
    return SimpleNamespace(
        is_initialized=lambda: initialized,
        get_runtime_context=lambda: SimpleNamespace(get_actor_id=lambda: actor),
    )


@pytest.mark.parametrize(
    ("ray", "expected"),
    [
        (None, False),
        (fake_ray(initialized=False, actor="a1"), False),
        (fake_ray(initialized=True, actor=None), False),
        (fake_ray(initialized=True, actor="a1"), True),
    ],
)
def test_an_actor_of_an_initialized_ray_is_a_simulation(
    monkeypatch: pytest.MonkeyPatch, ray: Any, expected: bool
) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    if ray is not None:
        monkeypatch.setitem(sys.modules, "ray", ray)
    assert in_simulation() is expected


def test_a_keyed_client_answers_as_its_client_does() -> None:
    client = make_client()
    keyed = KeyedClient(client, 7)
    assert keyed.describe() == client.describe(7)
    request = StepRequest(
        phase=Phase.FORWARD,
        id=StepId(0, 1, 0, 1, 7, 0, 2),
        weights={"weight": torch.ones(3, 2), "bias": torch.zeros(3)},
    )
    ours, direct = keyed.handle(request).activations, client.handle(request).activations
    assert ours is not None
    assert direct is not None
    assert torch.equal(ours, direct)


def test_a_background_session_serves_all_nodes_over_one_connection(
    make_run: Callable[..., Run], streams: list[StreamClient]
) -> None:
    run, background = make_run(1, 2, 3), BackgroundSession()
    for node, ticket in run.tickets.items():
        background.add(node, ticket, KeyedClient(make_client(), 10 * node))
    run.await_nodes(1, 2, 3)
    assert run.client_keys(1, 2, 3) == {1: 10, 2: 20, 3: 30}
    assert len(streams) == 1


def test_a_ticket_of_another_run_starts_anew(
    make_run: Callable[..., Run], streams: list[StreamClient]
) -> None:
    first, second, background = make_run(1), make_run(1), BackgroundSession()
    for key, run in enumerate((first, second)):
        background.add(1, run.tickets[1], KeyedClient(make_client(), key))
        run.await_nodes(1)
    # Even while the one before is open.
    assert (first.client_keys(1), second.client_keys(1)) == ({1: 0}, {1: 1})
    assert len(streams) == 2


def test_a_session_that_gave_up_is_started_anew(
    make_run: Callable[..., Run],
    streams: list[StreamClient],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: queue.Queue[None] = queue.Queue()
    serve = stream_session._serve

    def serve_and_tell(stream: StreamClient) -> None:
        serve(stream)
        ended.put(None)

    monkeypatch.setattr(stream_session, "_serve", serve_and_tell)
    run, background = make_run(1), BackgroundSession()
    nobody = Ticket(
        **{**run.tickets[1].to_values(), "address": "127.0.0.1:1", "reconnect_timeout_s": 0.1}  # type: ignore[arg-type]
    )
    background.add(1, nobody, KeyedClient(make_client(), 1))
    ended.get(timeout=20)
    assert "no connection to the server at 127.0.0.1:1" in caplog.text
    background.add(1, run.tickets[1], KeyedClient(make_client(), 2))
    run.await_nodes(1)
    assert run.client_keys(1) == {1: 2}
    assert len(streams) == 2


def client_fn(context: Context) -> SplitClient:
    return make_client()


def send(content: RecordDict, node: int = 10) -> Message:
    context = Context(1, node, {"partition-id": node + 1}, RecordDict(), {})
    return SplitClientApp(client_fn)(Message(content, node, "train.psl_session"), context)


def ticket_record(ticket: Ticket, **changes: Any) -> RecordDict:
    return RecordDict({TICKET: ConfigRecord({**ticket.to_values(), **changes})})


def num_requests(reply: Message) -> object:
    return reply.content.metric_records["psl-session"]["num-requests"]


@pytest.fixture
def own_process(flower_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_client_app, "_CLIENTS", ClientCache())
    monkeypatch.setattr(split_client_app, "_BACKGROUND", BackgroundSession())


@pytest.mark.usefixtures("own_process")
def test_in_a_deployment_the_handler_stays_until_the_goodbye(
    make_run: Callable[..., Run],
) -> None:
    run = make_run(10)
    replies: queue.Queue[Message] = queue.Queue()
    content = ticket_record(run.tickets[10])
    threading.Thread(target=lambda: replies.put(send(content)), daemon=True).start()
    run.await_nodes(10)
    assert run.client_keys(10) == run.client_keys(10) == {10: 11}
    assert replies.empty()
    run.server.goodbye()
    assert num_requests(replies.get(timeout=20)) == 2


@pytest.mark.usefixtures("own_process")
def test_in_a_simulation_the_handler_returns_at_once_and_serves_on(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_client_app, "in_simulation", lambda: True)
    run = make_run(10, 20)
    for node, ticket in run.tickets.items():
        assert num_requests(send(ticket_record(ticket), node)) == 0
    run.await_nodes(10, 20)
    assert run.client_keys(10, 20) == {10: 11, 20: 21}


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": 1}, r"ProtocolError: a ticket .* with unusable \['token'\]"),
        ({"version": 9}, r"ProtocolError: a ticket for a stream of protocol 9 .*Install the same"),
        (
            {"address": "127.0.0.1:1", "reconnect_timeout_s": 0.1},
            r"ConnectionError: no connection to the server at 127\.0\.0\.1:1",
        ),
    ],
)
def test_a_ticket_that_is_of_no_use_is_answered_with_the_reason(
    make_run: Callable[..., Run], changes: dict[str, Any], reason: str
) -> None:
    reply = send(ticket_record(make_run(10).tickets[10], **changes))
    assert reply.has_error()
    assert re.match(reason, reply.error.reason or "")


@pytest.mark.usefixtures("own_process")
def test_a_message_without_a_ticket_is_answered_with_the_reason() -> None:
    reply = send(RecordDict())
    assert reply.has_error()
    assert re.match(r"ProtocolError: a ticket .* unusable \['address',", reply.error.reason or "")
