"""What a strategy says of its settings."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning

_LOG = logging.getLogger("flwr.psl")


def log_settings(strategy: "ParallelSplitLearning") -> None:
    """Log a strategy's settings."""
    _LOG.info("Parallel split learning with %r", strategy.sampler)
    for name in (
        "client_sync",
        "overlap",
        "steps_per_round",
        "max_grad_norm",
        "fraction_evaluate",
    ):
        _LOG.info("\t%s: %s", name, getattr(strategy, name))
    if strategy.client_sync != "step":
        _LOG.info("\tserver_update: %s", strategy.server_update)
        if strategy.client_sync == "round":
            given = strategy.client_strategy
            name = "mean" if given is None else type(given).__name__
            _LOG.info("\tclient_strategy: %s", name)
    _LOG.info("\t%s", strategy.failures)
    _LOG.info("\t%s", strategy.encodings)
    _LOG.info("\tcut: %r, seed: %d, device: %s", strategy.model.at, strategy.seed, strategy.device)
