"""A device: its own data, and the layers in front of the cut."""

from flwr.app import Context

from flower_psl import SplitClient, SplitClientApp, cut

from .task import CUT, Net, train_set


def client_fn(context: Context) -> SplitClient:
    """Build the client of one device; its weights come from the server."""
    device = int(context.node_config["partition-id"])
    num_devices = int(context.node_config["num-partitions"])
    return SplitClient(cut(Net(), at=CUT).client, train_set(device, num_devices))


app = SplitClientApp(client_fn)
