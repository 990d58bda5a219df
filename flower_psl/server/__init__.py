"""The server's segment and optimizer, the round, the Strategy."""

from flower_psl.server.run_in_process import run_in_process
from flower_psl.server.strategy import ParallelSplitLearning

__all__ = ["ParallelSplitLearning", "run_in_process"]
