"""What takes the steps of a run, of a strategy's settings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from flower_psl.server.client_aggregation import ClientAggregation
from flower_psl.server.global_step import GlobalStep
from flower_psl.server.learner import Learner
from flower_psl.server.local_step import LocalStep
from flower_psl.server.overlapped_step import OverlappedStep
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.split_step import StepTaker
from flower_psl.server.updates import SERVER_UPDATES
from flower_psl.split import SplitModel
from flower_psl.transport import Transport

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning


def make_step(
    strategy: "ParallelSplitLearning",
    model: SplitModel,
    transport: Transport,
    nodes: Mapping[int, int],
    aggregation: ClientAggregation,
    *,
    total_steps: int,
) -> StepTaker:
    """Return what takes the steps of a run.

    Parameters
    ----------
    strategy : ParallelSplitLearning
        The run's settings.
    model : SplitModel
        The model to train.
    transport : Transport
        What reaches the clients.
    nodes : mapping of int to int
        Where each client key is reached, now.
    aggregation : ClientAggregation
        What makes one client segment of all, with ``client_sync="round"``.
    total_steps : int
        Steps of the run.
    """
    learner = Learner(
        model,
        strategy.optimizer_fn,
        strategy.lr_scheduler_fn,
        total_steps=total_steps,
        max_grad_norm=strategy.max_grad_norm,
        server_only=strategy.client_sync != "step",
    )
    if strategy.client_sync == "step":
        step = OverlappedStep if strategy.overlap else GlobalStep
        return step(
            transport=transport,
            nodes=nodes,
            learner=learner,
            loss_fn=strategy.loss_fn,
            seed=strategy.seed,
            device=torch.device(strategy.device),
            encodings=strategy.encodings,
            failures=strategy.failures,
        )
    forward = ServerForward(loss_fn=strategy.loss_fn, seed=strategy.seed)
    return LocalStep(
        transport=transport,
        nodes=nodes,
        learner=learner,
        loss_fn=strategy.loss_fn,
        seed=strategy.seed,
        device=torch.device(strategy.device),
        encodings=strategy.encodings,
        failures=strategy.failures,
        update=SERVER_UPDATES[strategy.server_update](learner, forward),
        aggregation=aggregation if strategy.client_sync == "round" else None,
    )
