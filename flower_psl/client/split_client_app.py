"""A flwr ClientApp that answers parallel split learning's messages.

A handler may run in a process that did not run the one before it: in a deployment every
message starts a process, in a simulation any actor may get it. What a backward pass needs
from its forward pass therefore lies in ``Context.state``; what is kept in this module, the
clients and their autograd graphs, saves time and nothing else.
"""

from dataclasses import replace
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from flower_psl.client.client_cache import ClientCache, ClientFn
from flower_psl.client.client_key import client_key
from flower_psl.wire import Phase, records

_STATE_ID = "psl-forward-id"
_STATE_WEIGHTS = "psl-forward-weights"

_CLIENTS = ClientCache()


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
        # Partials of module-level functions, because Ray pickles a closure by value, and
        # with it a copy of this module's caches.
        self.query("psl_describe")(partial(describe, client_fn))
        self.train("psl_step")(partial(step, client_fn))
        self.evaluate("psl_step")(partial(step, client_fn))


def describe(client_fn: ClientFn, message: Message, context: Context) -> Message:
    """Answer ``query.psl_describe``."""
    description = _CLIENTS.get(client_fn, context).describe(client_key(context.node_config))
    return Message(records.encode_description(description), reply_to=message)


def step(client_fn: ClientFn, message: Message, context: Context) -> Message:
    """Answer ``train.psl_step`` and ``evaluate.psl_step``."""
    request = records.decode_request(message.content)
    client = _CLIENTS.get(client_fn, context)
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
