"""What a log says of a run before it begins."""

import logging

from torch import nn

from flower_psl.split import batch_norm_layers
from flower_psl.telemetry import RunInfo

_LOG = logging.getLogger("flwr.psl")


def announce(info: RunInfo, segment: nn.Module, num_steps: int) -> None:
    """Log what a run is, and warn of BatchNorm in the client segment.

    Parameters
    ----------
    info : RunInfo
        What is known of the run.
    segment : nn.Module
        The client segment.
    num_steps : int
        Steps of the first round.
    """
    _LOG.info(
        "%d clients with %d examples; %d rounds of %d steps; %s, cut at %r, over %s",
        info.num_clients,
        info.num_examples,
        info.rounds,
        num_steps,
        info.sampler,
        info.cut,
        info.transport,
    )
    if layers := list(batch_norm_layers(segment)):
        _LOG.warning(
            "BatchNorm in the client segment (%s) normalizes over each client's own part of "
            "the batch, so training differs from centralized training and a part of one "
            "example is fragile: to_group_norm(model) replaces it, and "
            "GlobalSampler(min_client_batch=...) keeps parts from being small",
            ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else ""),
        )
