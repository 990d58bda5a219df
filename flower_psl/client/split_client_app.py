"""A flwr ClientApp that answers parallel split learning's messages.

A handler may run in a process that did not run the one before it: in a deployment every
message starts a process, in a simulation any actor may get it. What a backward pass needs
from its forward pass therefore lies in ``Context.state``, and so does what a device trains by
itself; what is kept in this module, the clients and their autograd graphs, saves time and
nothing else.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from flower_psl.client.client_cache import ClientCache, ClientFn
from flower_psl.client.client_key import client_key
from flower_psl.client.split_client import SplitClient
from flower_psl.client.stream_session import BackgroundSession, KeyedClient, in_simulation
from flower_psl.errors import ConfigError, PslError, presentable
from flower_psl.transport.flower_sessions import session_answer
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_ticket import TICKET, Ticket
from flower_psl.wire import Phase, StepRequest, records

_LOG = logging.getLogger("flwr.psl")

# Flower's code for an exception in a ClientApp.
_RAISED = 2

Handler = Callable[[ClientFn, Message, Context], Message]

_STATE_ID = "psl-forward-id"
_STATE_WEIGHTS = "psl-forward-weights"

_STATE_LOCAL = "psl-local"
_LOCAL = (Phase.TRAIN, Phase.SETTLE, Phase.COLLECT, Phase.SAVE, Phase.RESTORE)

_CLIENTS = ClientCache()
_BACKGROUND = BackgroundSession()


class SplitClientApp(ClientApp):
    """A ClientApp with parallel split learning's handlers on it.

    Ordinary handlers can be added to it: ``@app.train()``, ``@app.evaluate()``.

    Parameters
    ----------
    client_fn : callable
        Makes the `SplitClient` of a node from its `Context`. It is called once a process
        and node.
    """

    def __init__(self, client_fn: ClientFn) -> None:
        super().__init__()
        register(self, client_fn)


def register(app: ClientApp, client_fn: ClientFn) -> None:
    """Put parallel split learning's handlers on a ClientApp, beside those that it has.

    Parameters
    ----------
    app : ClientApp
        An app with handlers of its own, such as ``@app.train()``. Its mods wrap the new
        handlers too; give mods that change a message to the handlers that they are meant for,
        as ``@app.train(mods=[...])``.
    client_fn : callable
        Makes the `SplitClient` of a node from its `Context`.

    Raises
    ------
    ConfigError
        If the app is no ClientApp, answers all messages by a `client_fn` of its own, or has
        these handlers already.
    """
    if not isinstance(app, ClientApp):
        raise ConfigError(
            f"app is a {type(app).__name__}; handlers are put on a ClientApp: "
            "register(ClientApp(), client_fn)"
        )
    # Partials of module-level functions, because Ray pickles a closure by value, and
    # with it a copy of this module's caches.
    try:
        app.query("psl_describe")(partial(describe, client_fn))
        app.train("psl_step")(partial(step, client_fn))
        app.evaluate("psl_step")(partial(step, client_fn))
        app.train("psl_session")(partial(session, client_fn))
    except ValueError as error:
        raise ConfigError(
            f"the ClientApp does not take the handlers of parallel split learning: "
            f"{str(error).splitlines()[0]} An app made as ClientApp(client_fn=...) answers every "
            "message by its NumPyClient: make it ClientApp() with @app.train() and "
            "@app.evaluate(), and register it once."
        ) from error


def _says_why(handler: Handler) -> Handler:
    """Answer with an error message where a handler raises.

    If the exception left the handler, Flower would wrap it in tracebacks of its own, and
    the one line that says what to do would be lost in them.
    """

    @wraps(handler)
    def answer(client_fn: ClientFn, message: Message, context: Context) -> Message:
        try:
            return handler(client_fn, message, context)
        except Exception as error:
            # An error of our own says all there is to know; of others we show the traceback.
            _LOG.error("%s", error, exc_info=not isinstance(error, PslError))
            reason = presentable(f"{type(error).__name__}: {error}")
            return Message(Error(code=_RAISED, reason=reason), reply_to=message)

    return answer


@_says_why
def describe(client_fn: ClientFn, message: Message, context: Context) -> Message:
    """Answer ``query.psl_describe``."""
    description = _CLIENTS.get(client_fn, context).describe(client_key(context.node_config))
    if _STATE_LOCAL in context.state:
        description = replace(description, has_segment=True)
    return Message(records.encode_description(description), reply_to=message)


@_says_why
def step(client_fn: ClientFn, message: Message, context: Context) -> Message:
    """Answer ``train.psl_step`` and ``evaluate.psl_step``."""
    request = records.decode_request(message.content)
    client = _CLIENTS.get(client_fn, context)
    if request.phase in _LOCAL or (request.phase is Phase.EVALUATE and not request.weights):
        return Message(_answer_alone(client, request, context), reply_to=message)
    if request.phase is Phase.FORWARD:
        _CLIENTS.start_step(request.id[:4])
        context.state[_STATE_ID] = ConfigRecord({"id": list(request.id)})
        context.state[_STATE_WEIGHTS] = message.content["weights"]
    elif request.phase is Phase.BACKWARD and not client.holds(request.id):
        known = context.state.get(_STATE_ID)
        weights = context.state.get(_STATE_WEIGHTS)
        if (
            isinstance(known, ConfigRecord)
            and isinstance(weights, ArrayRecord)
            and known["id"] == list(request.id)
        ):
            request = replace(request, weights=records.decode_tensors(weights))
    return Message(records.encode_reply(client.handle(request)), reply_to=message)


def _answer_alone(client: SplitClient, request: StepRequest, context: Context) -> RecordDict:
    """Let a device go on with what it trains by itself, and put that away again."""
    saved = context.state.get(_STATE_LOCAL)
    if isinstance(saved, ConfigRecord) and isinstance(before := saved["state"], bytes):
        client.local.state = before
    reply = client.handle(request)
    if (after := client.local.state) is not None:
        context.state[_STATE_LOCAL] = ConfigRecord({"state": after})
    client.local.state = None
    return records.encode_reply(reply)


@_says_why
def session(client_fn: ClientFn, message: Message, context: Context) -> Message:
    """Answer ``train.psl_session``: serve the server's requests over a live connection."""
    ticket = Ticket.from_values(message.content.config_records.get(TICKET) or {})
    simulated = in_simulation()
    if simulated and not _BACKGROUND.has_room(context.node_id, ticket):
        return Message(session_answer(left_to_others=True), reply_to=message)
    client = _CLIENTS.get(client_fn, context)
    device = KeyedClient(client, client_key(context.node_config), _CLIENTS)
    if simulated:
        _BACKGROUND.add(context.node_id, ticket, device)
        return Message(session_answer(), reply_to=message)
    stream = StreamClient(ticket)
    stream.add(context.node_id, ticket.token, device)
    return Message(session_answer(stream.serve()), reply_to=message)
