"""The server's side: the whole run, from its configuration to its results."""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import cast

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from torch import nn

from flower_psl import Encodings, ParallelSplitLearning, RunRecorder, StreamSettings, cut

from .config import AppConfig
from .data import load_images
from .evaluation import central_evaluation
from .models import check_model_fits, cut_of, initial_model
from .optimizers import OPTIMIZERS, SCHEDULES
from .samplers import SAMPLERS

# Flower's logger prints what its children log.
logger = logging.getLogger("flwr.psl")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model by parallel split learning, and log what came of it in one line.

    Raises
    ------
    ConfigError
        If a configuration value breaks its rule, or the data do not fit the configuration.
    CutError
        If the model cannot be cut where the configuration says.
    """
    out = str(context.run_config.get("out", ""))
    if Path(out).is_absolute():
        # First of all: a run that fails on its configuration leaves no results of another.
        RunRecorder(out).prepare()
    config = AppConfig.from_run_config(context.run_config)
    if config.torch_num_threads:
        torch.set_num_threads(config.torch_num_threads)
    images = load_images(config.data)
    check_model_fits(config.model, images.spec)
    model = initial_model(config.model, images.spec, config.seed)
    strategy = build_strategy(config, model)
    evaluate_fn = central_evaluation(
        copy.deepcopy(model),
        images.test_set(),
        batch_size=config.evaluate_batch_size,
        device=config.device,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=config.num_server_rounds,
        evaluate_fn=evaluate_fn,
    )
    logger.info(report(config, result))


def build_strategy(config: AppConfig, model: nn.Module) -> ParallelSplitLearning:
    """Build the strategy that a configuration describes.

    Parameters
    ----------
    config : AppConfig
    model : nn.Module
        The whole model, with its initial weights.

    Raises
    ------
    CutError
        If the model cannot be cut where the configuration says.
    """
    return ParallelSplitLearning(
        model=cut(model, at=cut_of(model, config.model, config.cut)),
        model_name=config.model,
        sampler=SAMPLERS[config.sampler](config),
        loss_fn=nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        optimizer_fn=partial(OPTIMIZERS[config.optimizer], config),
        lr_scheduler_fn=SCHEDULES[config.learning_rate_schedule],
        max_grad_norm=config.max_grad_norm or None,
        steps_per_round=config.steps_per_round or None,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_batch_size=config.evaluate_batch_size,
        min_available_nodes=config.min_available_nodes,
        node_timeout_s=config.node_timeout_s,
        step_timeout_s=config.step_timeout_s,
        transport=config.transport,
        stream=StreamSettings(
            address=config.stream_address,
            advertise=config.stream_advertise,
            certificate_file=config.stream_certificate_file,
            key_file=config.stream_key_file,
            root_certificates_file=config.stream_root_certificates_file,
            plain_text=config.stream_plain_text,
            connect_timeout_s=config.stream_connect_timeout_s,
            reconnect_timeout_s=config.stream_reconnect_timeout_s,
            max_frame_bytes=config.stream_max_frame_bytes,
        ),
        encodings=Encodings(
            activations=config.activation_encoding,
            gradients=config.gradient_encoding,
            weights=config.weight_encoding,
        ),
        seed=config.seed,
        device=config.device,
        recorder=RunRecorder(config.out) if config.out else None,
    )


def report(config: AppConfig, result: Result) -> str:
    """Say in one line what a run came to.

    Parameters
    ----------
    config : AppConfig
    result : Result
        With the metrics of `central_evaluation` for every round, and the number of steps.
    """
    final_round = max(result.evaluate_metrics_serverapp)
    final = result.evaluate_metrics_serverapp[final_round]
    steps = sum(
        cast(int, round_["num-steps"]) for round_ in result.train_metrics_clientapp.values()
    )
    files = f"files in {config.out}" if config.out else "no files: out is empty"
    return (
        f"{config.model} on {config.data.dataset} with {config.sampler}: accuracy "
        f"{final['accuracy']:.4f}, loss {final['loss']:.4f} on {final['num-examples']} test "
        f"examples after {final_round} rounds and {steps} steps, batch size {config.batch_size}, "
        f"seed {config.seed}; {files}"
    )
