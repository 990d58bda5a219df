"""The benchmarks' server."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flower_psl import RunRecorder

from .workload import build_model, build_strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Take a bounded number of steps and leave their records in ``out``."""
    torch.set_num_threads(1)
    strategy = build_strategy(
        recorder=RunRecorder(str(context.run_config["out"])),
        steps_per_round=int(context.run_config["steps-per-round"]),
        min_available_nodes=int(context.run_config["num-clients"]),
        transport=str(context.run_config["transport"]),
    )
    strategy.start(grid, ArrayRecord(build_model().state_dict()), num_rounds=1)
