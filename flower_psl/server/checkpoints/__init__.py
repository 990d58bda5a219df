"""Saving a run as it goes on, and resuming it."""

from flower_psl.server.checkpoints.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
