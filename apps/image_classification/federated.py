"""Federated training of the whole model, by a strategy of Flower's as it is."""

import time

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from flower_psl import ConfigError, StepRecord

from .config import AppConfig
from .exchange import Exchange
from .federation import Federation
from .flower_strategies import FLOWER_STRATEGIES, least_devices
from .phase_run import PhaseRun

ROUND_TIMEOUT_S = 3600.0
_ADDS_TO_BUFFERS = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")


def train_federated(run: PhaseRun) -> Result:
    """Train the whole model on all devices with data, round by round.

    What is recorded as the one step of a round is the server's update of the model.

    Raises
    ------
    PslError
        If too few devices come, or all of them fail.
    """
    config, name = run.config, run.phase.method.strategy
    federation = gather(run)
    check_number(config, name, len(federation.num_examples))
    started = time.monotonic()

    def evaluate_and_record(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal started
        seconds = time.monotonic() - started
        exchange = federation.trained
        if exchange is not None:
            run.record_step(step_record(server_round, exchange))
        metrics = run.evaluate_fn(server_round, arrays)
        run.record_round(
            server_round,
            metrics,
            steps=int(exchange is not None),
            train_loss=None if exchange is None else exchange.mean("loss"),
            seconds=seconds,
        )
        started = time.monotonic()
        return metrics

    return FLOWER_STRATEGIES[name](config).start(
        federation,
        run.arrays,
        num_rounds=run.phase.num_rounds,
        timeout=ROUND_TIMEOUT_S,
        train_config=ConfigRecord({"seed": config.seed}),
        evaluate_fn=evaluate_and_record,
    )


def gather(run: PhaseRun) -> Federation:
    """Gather the devices of a phase, and start its records."""
    federation = ask_devices(run.grid, run.config)
    run.start_records(
        num_clients=len(federation.num_examples),
        num_examples=sum(federation.num_examples.values()),
        transport="messages",
    )
    return federation


def ask_devices(grid: Grid, config: AppConfig) -> Federation:
    """Wait for the devices, and ask them how many examples they have."""
    return Federation.gather(
        grid,
        min_nodes=config.min_available_nodes,
        node_timeout_s=config.node_timeout_s,
        timeout_s=config.step_timeout_s,
    )


def step_record(server_round: int, exchange: Exchange) -> StepRecord:
    """Return what one exchange of a round came to, in the form of a step."""
    return StepRecord(
        server_round=server_round,
        step=1,
        loss=exchange.mean("loss"),
        effective_batch_size=sum(exchange.num_examples.values()),
        clients=exchange.num_examples,
        bytes_up=exchange.bytes_up,
        bytes_down=exchange.bytes_down,
        seconds={"total": exchange.seconds},
    )


def check_buffers(model: nn.Module, strategy: str) -> None:
    """Refuse a strategy that would make a model's running statistics unusable.

    Raises
    ------
    ConfigError
        If it takes steps on all arrays, and the model has some that are no parameters.
    """
    buffers = [name for name, _ in model.named_buffers()]
    if buffers and strategy in _ADDS_TO_BUFFERS:
        raise ConfigError(
            f"method {strategy!r} takes steps on all arrays of a model, also on running "
            f"statistics such as {buffers[0]!r}, and a variance could become negative; choose a "
            "model without them, such as small-cnn, or method = 'fedavg'."
        )


def check_number(config: AppConfig, strategy: str, num_devices: int) -> None:
    """Refuse fewer devices with data than a strategy needs.

    Raises
    ------
    ConfigError
        If there are fewer.
    """
    least = least_devices(config, strategy)
    if num_devices < least:
        raise ConfigError(
            f"{num_devices} devices have data, and {strategy} with num-malicious-nodes = "
            f"{config.num_malicious_nodes} needs {least}; lower num-malicious-nodes, or set "
            "min-partition-size = 1 so that every device has data."
        )
