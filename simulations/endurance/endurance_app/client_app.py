"""Devices that take their time for each pass, so that a kill finds them at work."""

import torch
from flwr.app import Context

from flower_psl import SplitClient, SplitClientApp

from .task import build_client


def client_fn(context: Context) -> SplitClient:
    """Return the client of this node's partition."""
    torch.set_num_threads(1)
    config = context.run_config
    key = int(context.node_config["partition-id"])
    return build_client(key, int(config["seed"]), float(config["pace-s"]))


app = SplitClientApp(client_fn)
