"""The benchmarks' devices."""

import torch
from flwr.app import Context

from flower_psl import SplitClient, SplitClientApp

from .workloads import WORKLOADS


def client_fn(context: Context) -> SplitClient:
    """Return the client of this node's partition."""
    torch.set_num_threads(1)
    workload = WORKLOADS[str(context.run_config["workload"])]
    return workload.build_client(int(context.node_config["partition-id"]))


app = SplitClientApp(client_fn)
