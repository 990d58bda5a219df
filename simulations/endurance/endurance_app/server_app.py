"""The server of runs that must last."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flower_psl import FailurePolicy, StreamSettings

from .step_times import StepTimes
from .task import NUM_CLIENTS, build_strategy, evaluation, initial_model

# Four SuperNodes on a busy machine start their processes one after the other.
_CONNECT_TIMEOUT_S = 240.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train over the stream, and leave the records in ``out``."""
    torch.set_num_threads(1)
    config = context.run_config
    num_rounds, seed = int(config["num-rounds"]), int(config["seed"])
    strategy = build_strategy(
        seed,
        recorder=StepTimes(Path(str(config["out"]))),
        steps_per_round=int(config["steps-per-round"]),
        failures=FailurePolicy(step_timeout_s=float(config["step-timeout-s"])),
        min_available_nodes=NUM_CLIENTS,
        node_timeout_s=_CONNECT_TIMEOUT_S,
        transport="stream",
        stream=StreamSettings(
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            reconnect_timeout_s=float(config["reconnect-timeout-s"]),
        ),
    )
    strategy.start(
        grid,
        ArrayRecord(initial_model(seed).state_dict()),
        num_rounds=num_rounds,
        timeout=float("inf"),
        evaluate_fn=evaluation(num_rounds),
    )
