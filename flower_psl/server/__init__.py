"""The server's segment and optimizer, the round, the Strategy."""

from flower_psl.server.checkpoints import Checkpoints
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.run_in_process import run_in_process
from flower_psl.server.strategy import ParallelSplitLearning

__all__ = ["Checkpoints", "FailurePolicy", "ParallelSplitLearning", "run_in_process"]
