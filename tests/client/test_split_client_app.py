import logging
import pickle
import re
from typing import TYPE_CHECKING, cast

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import SplitClient, SplitClientApp
from flower_psl.client import split_client_app
from flower_psl.client.client_cache import ClientCache
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepRequest, records

if TYPE_CHECKING:
    from collections.abc import Mapping

ID = StepId(seed=1, server_round=1, plan=0, step=1, client_key=3, start=0, batch_size=4)
made: list[int] = []


def client_fn(context: Context) -> SplitClient:
    made.append(context.node_id)
    data = torch.linspace(0, 1, 20).reshape(10, 2)
    return SplitClient(segment(), TensorDataset(data, torch.arange(10)))


def segment() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))


WEIGHTS = ModuleIndex(segment()).tensors


@pytest.fixture(autouse=True)
def own_process(flower_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    new_process(monkeypatch)
    made.clear()


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the start of a process does to the module's caches."""
    monkeypatch.setattr(split_client_app, "_CLIENTS", ClientCache())


def context(run_id: int = 1) -> Context:
    return Context(run_id, 10, {"partition-id": 3}, RecordDict(), {})


def send(context: Context, request: StepRequest, weights: "Mapping[str, Tensor]") -> Message:
    kind = "evaluate.psl_step" if request.phase is Phase.EVALUATE else "train.psl_step"
    content = records.encode_request(request, records.encode_tensors(weights))
    return SplitClientApp(client_fn)(Message(content, 10, kind), context)


def forward(context: Context, step: StepId = ID) -> Tensor:
    request = StepRequest(phase=Phase.FORWARD, id=step, weights=WEIGHTS)
    reply = records.decode_reply(send(context, request, WEIGHTS).content)
    assert reply.activations is not None
    return reply.activations


def send_backward(context: Context, step: StepId = ID) -> Message:
    request = StepRequest(phase=Phase.BACKWARD, id=step, gradient=torch.ones(4, 8))
    return send(context, request, {})


def backward(context: Context, step: StepId = ID) -> dict[str, Tensor]:
    return dict(records.decode_reply(send_backward(context, step).content).gradients)


def assert_refused(reply: Message, reason: str) -> None:
    """Look for the one line that says what to do, in an error message of Flower's."""
    assert reply.has_error()
    assert not reply.has_content()
    assert reply.error.code == 2
    assert reply.error.reason is not None
    assert re.match(reason, reply.error.reason), reply.error.reason
    assert "Traceback" not in reply.error.reason


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_a_node_describes_itself_by_its_configuration() -> None:
    message = Message(RecordDict(), 10, "query.psl_describe")
    reply = SplitClientApp(client_fn)(message, context())
    description = records.decode_description(reply.content)
    assert (description.client_key, description.num_examples) == (3, 10)
    assert list(description.segment) == ["0.weight", "0.bias"]


def test_a_step_over_messages_is_that_of_the_client() -> None:
    here, there = context(), client_fn(context())
    request = StepRequest(phase=Phase.FORWARD, id=ID, weights=WEIGHTS)
    direct = there.handle(request)
    assert direct.activations is not None
    assert torch.equal(forward(here), direct.activations)
    gradients = there.handle(
        StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.ones(4, 8))
    ).gradients
    assert_equal(backward(here), dict(gradients))


def test_a_process_makes_its_client_once() -> None:
    here = context()
    forward(here)
    backward(here)
    assert made == [10]


def test_the_backward_pass_may_come_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = context(), context()
    forward(here)
    expected = backward(here)
    forward(other)
    new_process(monkeypatch)
    assert_equal(backward(other), expected)
    assert len(made) == 2


def test_the_next_step_frees_the_graphs_of_all_nodes_in_the_process() -> None:
    here = context()
    there = Context(1, 11, {"partition-id": 4}, RecordDict(), {})
    forward(here)
    client = split_client_app._CLIENTS.get(client_fn, here)
    assert client.holds(ID)
    forward(there, ID._replace(client_key=4, step=2))
    assert not client.holds(ID)
    assert set(backward(here)) == {"0.weight", "0.bias"}


def test_what_a_backward_pass_needs_is_in_the_context() -> None:
    here = context()
    forward(here)
    weights, known = here.state["psl-forward-weights"], here.state["psl-forward-id"]
    assert isinstance(weights, ArrayRecord)
    assert isinstance(known, ConfigRecord)
    assert_equal(records.decode_tensors(weights), WEIGHTS)
    assert known["id"] == list(ID)


def test_the_context_of_another_step_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    here = context()
    forward(here)
    forward(here, ID._replace(step=2))
    new_process(monkeypatch)
    assert_refused(
        send_backward(here), "ProtocolError: client 3, round 1, step 1: a gradient came for"
    )


def test_a_lost_context_is_told() -> None:
    assert_refused(
        send_backward(context()),
        r"ProtocolError: .* not known here; .*Let the server repeat the step\.$",
    )


def test_another_run_makes_a_client_of_its_own() -> None:
    forward(context(run_id=1))
    forward(context(run_id=2))
    assert made == [10, 10]


def test_evaluation_leaves_the_state_alone() -> None:
    here = context()
    request = StepRequest(phase=Phase.EVALUATE, id=ID, weights=WEIGHTS)
    assert_refused(send(here, request, WEIGHTS), "ProtocolError: .* of 0 in the test data")
    assert list(here.state) == []


def test_a_message_of_others_is_refused() -> None:
    message = Message(RecordDict(), 10, "train.psl_step")
    reply = SplitClientApp(client_fn)(message, context())
    assert_refused(reply, "ProtocolError: .* without the ConfigRecord 'psl'")


def test_a_bad_client_key_is_refused() -> None:
    here = Context(1, 10, {"partition-id": -4}, RecordDict(), {})
    reply = SplitClientApp(client_fn)(Message(RecordDict(), 10, "query.psl_describe"), here)
    assert_refused(reply, "ConfigError: .*partition-id = -4")


@pytest.mark.parametrize("kind", ["query.psl_describe", "train.psl_step", "evaluate.psl_step"])
def test_an_error_of_the_users_code_is_answered_to_the_message_that_met_it(kind: str) -> None:
    def broken(context: Context) -> SplitClient:
        raise FileNotFoundError("/data/train.npz")

    request = StepRequest(phase=Phase.EVALUATE, id=ID, weights={})
    content = records.encode_request(request, records.encode_tensors({}))
    message = Message(content, 10, kind)
    message.metadata.__dict__["_message_id"] = "m-1"
    reply = SplitClientApp(broken)(message, context())
    assert_refused(reply, "FileNotFoundError: /data/train.npz$")
    assert reply.metadata.reply_to_message_id == "m-1"


def test_the_device_logs_a_traceback_of_the_users_errors_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(context: Context) -> SplitClient:
        raise FileNotFoundError("/data/train.npz")

    def unlike(context: Context) -> SplitClient:
        return cast(SplitClient, nn.Linear(1, 1))

    message = Message(RecordDict(), 10, "query.psl_describe")
    with caplog.at_level(logging.ERROR, "flwr.psl"):
        for client_fn in (broken, unlike):
            SplitClientApp(client_fn)(message, context())
    theirs, ours = caplog.records
    assert theirs.getMessage() == "/data/train.npz"
    assert theirs.exc_info
    assert "client_fn returned a Linear" in ours.getMessage()
    assert not ours.exc_info


def test_a_session_without_a_ticket_is_an_error_message() -> None:
    reply = SplitClientApp(client_fn)(Message(RecordDict(), 10, "train.psl_session"), context())
    assert_refused(reply, r"ProtocolError: a ticket .* unusable \['address', .*Install the same")


def test_ordinary_handlers_live_beside() -> None:
    app = SplitClientApp(client_fn)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"fedavg": ConfigRecord({"n": 1})}), reply_to=message)

    reply = app(Message(RecordDict(), 10, "train"), context())
    assert list(reply.content) == ["fedavg"]
    described = app(Message(RecordDict(), 10, "query.psl_describe"), context())
    assert list(described.content) == ["psl"]


def test_the_app_pickles_without_its_caches() -> None:
    forward(context())
    app = pickle.loads(pickle.dumps(SplitClientApp(client_fn)))
    reply = app(Message(RecordDict(), 10, "query.psl_describe"), context())
    assert records.decode_description(reply.content).client_key == 3


@pytest.mark.parametrize("trained", [False, True])
def test_a_node_tells_whether_it_has_trained_by_itself(trained: bool) -> None:
    here = context()
    if trained:
        here.state["psl-local"] = ConfigRecord({"state": b"of another process"})
    reply = SplitClientApp(client_fn)(Message(RecordDict(), 10, "query.psl_describe"), here)
    assert records.decode_description(reply.content).has_segment is trained
