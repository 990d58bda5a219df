"""The ways to update the server segment, by their names in `ParallelSplitLearning`."""

from collections.abc import Callable

from flower_psl.server.learner import Learner
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.updates.global_batch import GlobalBatch
from flower_psl.server.updates.per_client_average import PerClientAverage
from flower_psl.server.updates.per_client_sequential import PerClientSequential
from flower_psl.server.updates.server_update import ServerTurn, ServerUpdate

SERVER_UPDATES: dict[str, Callable[[Learner, ServerForward], ServerUpdate]] = {
    "global-batch": GlobalBatch,
    "per-client-average": PerClientAverage,
    "per-client-sequential": PerClientSequential,
}

__all__ = ["SERVER_UPDATES", "ServerTurn", "ServerUpdate"]
