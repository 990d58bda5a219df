import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
from flower_psl.client.stream_session import (
    BackgroundSession,
    KeyedClient,
    in_simulation,
    num_actors,
)
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.transport.stream_ticket import TICKET, Ticket
from flower_psl.transport.stream_tls import make_certificate
from flower_psl.wire import Phase, StepId, StepRequest


def make_client() -> SplitClient:
    return SplitClient(nn.Linear(2, 3), TensorDataset(torch.rand(6, 2), torch.arange(6)))


def keyed(key: int) -> KeyedClient:
    return KeyedClient(make_client(), key, ClientCache())


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
                session=f"of {id(self)}",
                certificate=certificate.roots.decode(),
                server_name=certificate.server_name,
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
        replies = self.transport.describe(nodes, 20).all()
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


def fake_ray(
    initialized: bool = True,
    actor: str | None = "a1",
    taken: dict[str, float] | None = None,
    nodes: Sequence[dict[str, float]] = (),
) -> SimpleNamespace:
    context = SimpleNamespace(
        get_actor_id=lambda: actor, get_assigned_resources=lambda: taken or {}
    )
    return SimpleNamespace(
        is_initialized=lambda: initialized,
        get_runtime_context=lambda: context,
        nodes=lambda: [{"Resources": resources} for resources in nodes],
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


@pytest.mark.parametrize(
    ("taken", "nodes", "expected"),
    [
        ({"CPU": 1.0}, [{"CPU": 2.0, "memory": 9.0}], 2),
        ({"CPU": 2.0}, [{"CPU": 5.0}, {"CPU": 3.0}], 3),
        ({"CPU": 1.0, "GPU": 0.5}, [{"CPU": 8.0, "GPU": 1.0}], 2),
        ({"CPU": 1.0, "GPU": 0.5}, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 2),
        # A machine that has left the cluster has no resources.
        ({"CPU": 1.0}, [{"CPU": 2.0}, {}], 2),
        ({}, [{"CPU": 2.0}], 1),
    ],
)
def test_actors_are_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    taken: dict[str, float],
    nodes: list[dict[str, float]],
    expected: int,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", fake_ray(taken=taken, nodes=nodes))
    assert num_actors() == expected


def test_a_process_has_room_for_its_share_of_the_nodes(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_session, "num_actors", lambda: 2)
    monkeypatch.setattr(stream_session, "_FULL_S", 0.0)
    run, other, background = make_run(1, 2, 3), make_run(4), BackgroundSession()
    shared = {n: replace(t, num_nodes=3) for n, t in (run.tickets | other.tickets).items()}
    for node in (1, 2):
        assert background.has_room(node, shared[node])
        background.add(node, shared[node], keyed(node))
    assert not background.has_room(3, shared[3])
    assert background.has_room(2, shared[2]), "it serves this one already"
    assert background.has_room(4, shared[4]), "another run's nodes are shared anew"
    assert background.has_room(3, run.tickets[3]), "the server insists"


def test_a_keyed_client_answers_as_its_client_does() -> None:
    client = make_client()
    ours = KeyedClient(client, 7, ClientCache())
    assert ours.describe() == client.describe(7)
    request = StepRequest(
        phase=Phase.FORWARD,
        id=StepId(0, 1, 0, 1, 7, 0, 2),
        weights={"weight": torch.ones(3, 2), "bias": torch.zeros(3)},
    )
    answer, direct = ours.handle(request).activations, client.handle(request).activations
    assert answer is not None
    assert direct is not None
    assert torch.equal(answer, direct)


def test_a_new_step_frees_what_all_clients_of_the_process_kept() -> None:
    cache = ClientCache()
    first, second = (
        cache.get(lambda _: make_client(), Context(1, node, {}, RecordDict(), {}))
        for node in (1, 2)
    )
    weights = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    steps = [StepId(0, 1, 0, step, step, 0, 2) for step in (1, 2)]
    KeyedClient(first, 1, cache).handle(
        StepRequest(phase=Phase.FORWARD, id=steps[0], weights=weights)
    )
    assert first.holds(steps[0])
    KeyedClient(second, 2, cache).handle(
        StepRequest(phase=Phase.FORWARD, id=steps[1], weights=weights)
    )
    assert not first.holds(steps[0])
    assert second.holds(steps[1])


def test_a_step_is_prepared_by_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StepId] = []
    monkeypatch.setattr(SplitClient, "prepare", lambda _, step: asked.append(step))
    KeyedClient(make_client(), 7, ClientCache()).prepare(StepId(0, 1, 0, 1, 7, 0, 2))
    assert asked == [StepId(0, 1, 0, 1, 7, 0, 2)]


def test_a_background_session_serves_all_nodes_over_one_connection(
    make_run: Callable[..., Run], streams: list[StreamClient]
) -> None:
    run, background = make_run(1, 2, 3), BackgroundSession()
    for node, ticket in run.tickets.items():
        background.add(node, ticket, keyed(10 * node))
    run.await_nodes(1, 2, 3)
    assert run.client_keys(1, 2, 3) == {1: 10, 2: 20, 3: 30}
    assert len(streams) == 1


def test_a_session_s_thread_computes_with_as_many_threads_as_its_process(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    def tell(count: int) -> None:
        told.append((threading.current_thread().name, count))

    monkeypatch.setattr(torch, "set_num_threads", tell)
    run, background = make_run(1), BackgroundSession()
    background.add(1, run.tickets[1], keyed(1))
    run.await_nodes(1)
    assert told == [("psl-session", torch.get_num_threads())]


def test_a_ticket_of_another_run_starts_anew(
    make_run: Callable[..., Run], streams: list[StreamClient]
) -> None:
    first, second, background = make_run(1), make_run(1), BackgroundSession()
    for key, run in enumerate((first, second)):
        background.add(1, run.tickets[1], keyed(key))
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
    background.add(1, nobody, keyed(1))
    ended.get(timeout=20)
    assert "no connection to the server at 127.0.0.1:1" in caplog.text
    background.add(1, run.tickets[1], keyed(2))
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
def test_a_node_beyond_a_process_s_share_is_left_to_others_and_not_made(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_client_app, "in_simulation", lambda: True)
    monkeypatch.setattr(stream_session, "num_actors", lambda: 2)
    monkeypatch.setattr(stream_session, "_FULL_S", 0.0)
    run = make_run(10, 20)
    made: list[int] = []

    def make(context: Context) -> SplitClient:
        made.append(context.node_id)
        return make_client()

    answers = {}
    for node, ticket in run.tickets.items():
        content = ticket_record(replace(ticket, num_nodes=2))
        context = Context(1, node, {}, RecordDict(), {})
        reply = SplitClientApp(make)(Message(content, node, "train.psl_session"), context)
        answers[node] = reply.content.metric_records["psl-session"]["left-to-others"]
    assert answers == {10: 0, 20: 1}
    assert made == [10]


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
