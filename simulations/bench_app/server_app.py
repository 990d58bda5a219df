"""The benchmarks' server."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flower_psl import RunRecorder, StreamSettings

from .alternation import Alternation
from .plain_loop_process import PlainLoopProcess
from .workloads import WORKLOADS

# Eight SuperNodes on two cores start their processes one after the other.
_CONNECT_TIMEOUT_S = 240.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train in turns with the plain loop, and leave the records of both in ``out``."""
    torch.set_num_threads(1)
    config = context.run_config
    name = str(config["workload"])
    num_clients, steps = int(config["num-clients"]), int(config["steps-per-round"])
    out = Path(str(config["out"]))
    workload = WORKLOADS[name]
    strategy = workload.build_strategy(
        recorder=RunRecorder(out),
        steps_per_round=steps,
        overlap=bool(config["overlap"]),
        min_available_nodes=num_clients,
        node_timeout_s=_CONNECT_TIMEOUT_S,
        transport=str(config["transport"]),
        stream=StreamSettings(
            shared_memory=bool(config["shared-memory"]), connect_timeout_s=_CONNECT_TIMEOUT_S
        ),
    )
    strategy.start(
        grid,
        ArrayRecord(workload.build_model().state_dict()),
        num_rounds=int(config["num-rounds"]),
        evaluate_fn=Alternation(PlainLoopProcess(name, num_clients), steps, out),
    )
