"""The benchmarks' devices."""

import torch
from flwr.app import Context

from flower_psl import SplitClient, SplitClientApp

from .workload import build_client


def client_fn(context: Context) -> SplitClient:
    """Return the client of this node's partition."""
    torch.set_num_threads(1)
    return build_client(int(context.node_config["partition-id"]))


app = SplitClientApp(client_fn)
