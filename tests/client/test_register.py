"""An app of Flower's gets parallel split learning in one line, and its mods go on working."""

import logging
from typing import cast

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.clientapp.typing import Mod
from torch import nn
from torch.utils.data import TensorDataset

from flower_psl import ConfigError, SplitClient, register
from flower_psl.client import split_client_app
from flower_psl.client.client_cache import ClientCache
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepRequest, records

MODS: dict[str, Mod] = {
    "message_size_mod": message_size_mod,
    "arrays_size_mod": arrays_size_mod,
    "fixedclipping_mod": fixedclipping_mod,
}


def client_fn(context: Context) -> SplitClient:
    data = torch.linspace(0, 1, 20).reshape(10, 2)
    return SplitClient(segment(), TensorDataset(data, torch.arange(10)))


def segment() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(2, 8)


@pytest.fixture(autouse=True)
def own_process(flower_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_client_app, "_CLIENTS", ClientCache())


def existing_app(
    *, of_app: list[Mod] | None = None, of_handler: list[Mod] | None = None
) -> ClientApp:
    """Return what a user of Flower has: an app that adds 3 to all weights."""
    app = ClientApp(mods=of_app)

    @app.train(mods=of_handler)
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            "arrays": ArrayRecord({name: tensor + 3.0 for name, tensor in arrays.items()}),
            "metrics": MetricRecord({"num-examples": 4}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def context() -> Context:
    return Context(1, 10, {"partition-id": 3}, RecordDict(), {})


def train(app: ClientApp) -> Message:
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        "arrays": ArrayRecord({"weight": torch.zeros(4)}),
        "config": ConfigRecord({"clipping_norm": 2.0, "server-round": 1}),
    }
    return app(Message(RecordDict(content), 10, "train"), context())


def describe(app: ClientApp) -> Message:
    return app(Message(RecordDict(), 10, "query.psl_describe"), context())


def step(app: ClientApp, here: Context, phase: Phase = Phase.FORWARD) -> Message:
    request = StepRequest(
        phase=phase,
        id=StepId(seed=1, server_round=1, plan=0, step=1, client_key=3, start=0, batch_size=4),
        weights=ModuleIndex(segment()).tensors if phase is Phase.FORWARD else {},
        gradient=torch.ones(4, 8) if phase is Phase.BACKWARD else None,
    )
    weights = records.encode_tensors(request.weights)
    return app(Message(records.encode_request(request, weights), 10, "train.psl_step"), here)


def weight_of(reply: Message) -> torch.Tensor:
    return reply.content.array_records["arrays"].to_torch_state_dict()["weight"]


def test_one_line_adds_split_learning_and_leaves_the_rest() -> None:
    app = existing_app()
    register(app, client_fn)
    assert torch.equal(weight_of(train(app)), torch.full((4,), 3.0))
    assert records.decode_description(describe(app).content).client_key == 3
    activations = records.decode_reply(step(app, context()).content).activations
    assert activations is not None
    assert activations.shape == (4, 8)


@pytest.mark.parametrize("name", MODS)
def test_flowers_mods_on_the_apps_own_handler_go_on_working(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = existing_app(of_handler=[MODS[name]])
    register(app, client_fn)
    with caplog.at_level(logging.INFO, "flwr"):
        reply = train(app)
    said = {
        "message_size_mod": "Incoming message size:",
        "arrays_size_mod": "Total array elements received: ",
        "fixedclipping_mod": "fixedclipping_mod: parameters are clipped by value: 2.0",
    }
    assert said[name] in caplog.text
    # Four weights moved by 3 each are 6 away from where they were.
    expected = 1.0 if name == "fixedclipping_mod" else 3.0
    torch.testing.assert_close(weight_of(reply), torch.full((4,), expected))
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        assert not describe(app).has_error()
        assert not step(app, context()).has_error()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["message_size_mod", "arrays_size_mod"])
def test_mods_that_look_at_all_of_an_app_see_the_messages_of_split_learning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = existing_app(of_app=[MODS[name]])
    register(app, client_fn)
    here = context()
    with caplog.at_level(logging.INFO, "flwr"):
        for phase in (Phase.FORWARD, Phase.BACKWARD):
            assert not step(app, here, phase).has_error()
    # The activations of the one and their gradient in the other, 4 x 8 floats each.
    numbers = [int(word) for word in caplog.text.split() if word.isdecimal()]
    assert sum(number >= 4 * 4 * 8 for number in numbers) >= 2


@pytest.mark.parametrize(
    "mod",
    [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(1.0, 1.0, 1.0, 1e-5)],
    ids=["fixedclipping_mod", "adaptiveclipping_mod", "LocalDpMod"],
)
def test_a_mod_that_changes_what_devices_send_cannot_be_that_of_the_whole_app(mod: Mod) -> None:
    app = existing_app(of_app=[mod])
    register(app, client_fn)
    reply = describe(app)
    assert reply.has_error()
    assert "expects exactly one ArrayRecord" in str(reply.error.reason)


def test_a_legacy_app_is_refused_with_the_way_out() -> None:
    app = ClientApp(client_fn=lambda context: cast("object", None))  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError) as refusal:
        register(app, client_fn)
    for words in ("ClientApp(client_fn=...)", "@app.train()", "Use either `@app.query()`"):
        assert words in str(refusal.value)


def test_an_app_is_registered_once() -> None:
    app = existing_app()
    register(app, client_fn)
    with pytest.raises(
        ConfigError, match=r"'psl_describe' is already registered.*register it onc"
    ):
        register(app, client_fn)


def test_only_a_client_app_is_registered() -> None:
    with pytest.raises(ConfigError, match=r"app is a function; .*register\(ClientApp\(\), client"):
        register(cast(ClientApp, client_fn), client_fn)
