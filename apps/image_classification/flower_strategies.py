"""Flower's strategies, as they are, with their arguments from the configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)

if TYPE_CHECKING:
    from .config import AppConfig

# Who takes part is settled before a strategy is asked, so it has nobody to wait for.
_NO_MINIMUM: dict[str, Any] = {
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}


def _common(config: "AppConfig") -> dict[str, Any]:
    return {**_NO_MINIMUM, "fraction_evaluate": config.fraction_evaluate}


def _server_rate(config: "AppConfig", name: str) -> dict[str, Any]:
    """Return the server's learning rate under its name there; 0 is the strategy's own."""
    rate = {name: config.server_learning_rate} if config.server_learning_rate else {}
    return {**_common(config), **rate}


FLOWER_STRATEGIES: dict[str, Callable[["AppConfig"], Strategy]] = {
    "fedavg": lambda config: FedAvg(**_common(config)),
    "fedprox": lambda config: FedProx(**_common(config), proximal_mu=config.proximal_mu),
    "fedavgm": lambda config: FedAvgM(
        **_server_rate(config, "server_learning_rate"), server_momentum=config.server_momentum
    ),
    "fedadam": lambda config: FedAdam(**_server_rate(config, "eta")),
    "fedyogi": lambda config: FedYogi(**_server_rate(config, "eta")),
    "fedadagrad": lambda config: FedAdagrad(**_server_rate(config, "eta")),
    "fedmedian": lambda config: FedMedian(**_common(config)),
    "fedtrimmedavg": lambda config: FedTrimmedAvg(**_common(config), beta=config.trim_share),
    "krum": lambda config: Krum(**_common(config), num_malicious_nodes=config.num_malicious_nodes),
}
"""What aggregates whole models, or with ``client-sync = "round"`` client segments."""


def least_devices(config: "AppConfig", name: str) -> int:
    """Return how many devices a strategy needs to do what it promises."""
    return 2 * config.num_malicious_nodes + 3 if name == "krum" else 1
