"""The server's side: the whole run, from its configuration to its results."""

import logging
from pathlib import Path
from typing import cast

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from flower_psl import RunRecorder

from .comparison import compared
from .config import AppConfig
from .data import load_images
from .models import check_model_fits
from .phases import run_name
from .run_phases import run_phases
from .start_checks import check_devices, check_methods

# Flower's logger prints what its children log.
logger = logging.getLogger("flwr.psl")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model as the configuration says, and log what came of it in one line.

    Raises
    ------
    ConfigError
        If a configuration value breaks its rule, or the data do not fit the configuration:
        before the first phase trains, as far as it can be known then.
    CutError
        If the model cannot be cut where the configuration says.
    """
    out = str(context.run_config.get("out", ""))
    if Path(out).is_absolute():
        # First of all: a run that fails on its configuration leaves no results of another,
        # but for the steps of one that may be resumed.
        RunRecorder(out).prepare(keep_steps=bool(context.run_config.get("checkpoint-folder")))
    config = AppConfig.from_run_config(context.run_config)
    check_methods(config)
    if config.torch_num_threads:
        torch.set_num_threads(config.torch_num_threads)
    images = load_images(config.data)
    check_model_fits(config.model, images.spec)
    check_devices(grid, config)
    runs = (
        compared(grid, config, images)
        if config.compare
        else [(config, run_phases(grid, config, images))]
    )
    for each, result in runs:
        logger.info(report(each, result))


def report(config: AppConfig, result: Result) -> str:
    """Say in one line what a run came to.

    Parameters
    ----------
    config : AppConfig
    result : Result
        With the metrics of an evaluation for every round, by the server or by devices.
    """
    by_round = result.evaluate_metrics_clientapp | result.evaluate_metrics_serverapp
    final_round = max(by_round)
    final = by_round[final_round]
    steps = sum(
        cast(int, round_.get("num-steps", 1)) for round_ in result.train_metrics_clientapp.values()
    )
    files = f"files in {config.out}" if config.out else "no files: out is empty"
    return (
        f"{config.model} on {config.data.dataset} with {run_name(config)}: accuracy "
        f"{final['accuracy']:.4f}, loss {final['loss']:.4f} on {final['num-examples']} test "
        f"examples after {final_round} rounds and {steps} steps, batch size {config.batch_size}, "
        f"seed {config.seed}; {files}"
    )
