"""The device's side: split learning, and ordinary Flower training of the whole model."""

from functools import partial
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from flower_psl import SplitClient, SplitClientApp, cut

from .device import Device
from .models import cut_of, meta_model
from .optimizers import OPTIMIZERS

_OWN_ARRAYS = "own-arrays"


def client_fn(context: Context) -> SplitClient:
    """Build the client of one node, for split learning.

    Parameters
    ----------
    context : Context
        As for `Device`.

    Returns
    -------
    SplitClient
        Its segment is on the meta device: weights come with every request, and those of
        the server's segment never reach the device.

    Raises
    ------
    ConfigError
        If a configuration value breaks its rule, or the data do not fit the configuration.
    """
    device = Device(context)
    config = device.config
    model = meta_model(config.model, device.images.spec)
    return SplitClient(
        cut(model, at=cut_of(model, config.model, config.cut)).client,
        train_set=device.train_set,
        test_set=device.test_set,
        optimizer_fn=partial(OPTIMIZERS[config.optimizer], config),
        state_dir=config.state_dir or None,
        device=config.device,
    )


app = SplitClientApp(client_fn)


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Say whose data a node has, and on how many examples it trains."""
    device = Device(context)
    about = ConfigRecord({"client-key": device.key, "num-examples": len(device.train_set)})
    return Message(RecordDict({"about": about}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the whole model that a message brings, and send it back."""
    device = Device(context)
    model = device.model(_arrays(message.content))
    metrics = device.train(model, message)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the whole model that a message brings, on what the device has held out."""
    device = Device(context)
    metrics = device.evaluate(device.model(_arrays(message.content)), device.test_set)
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.train("alone")
def train_alone(message: Message, context: Context) -> Message:
    """Train the device's own model, which never leaves it, and try it on the test data.

    It begins with the arrays of the first message; later messages bring none.
    """
    device = Device(context)
    own = context.state.get(_OWN_ARRAYS, message.content.get("arrays"))
    model = device.model(cast(ArrayRecord, own))
    metrics = device.train(model, message)
    context.state[_OWN_ARRAYS] = ArrayRecord(model.state_dict())
    test = device.evaluate(model, device.images.test_set())
    return Message(RecordDict({"metrics": metrics, "test": test}), reply_to=message)


def _arrays(content: RecordDict) -> ArrayRecord:
    return content.array_records["arrays"]
