"""A run's checkpoints in their folder: the newest one that is whole, and new ones."""

import logging
from typing import NamedTuple

from flower_psl.errors import CheckpointError
from flower_psl.server.checkpoints.checkpoints import Checkpoints
from flower_psl.storage import DamagedStateError, State, Version, pack_state, unpack_state

_LOG = logging.getLogger("flwr.psl")


class Saved(NamedTuple):
    """A checkpoint that was read."""

    version: Version
    where: str
    state: State


class CheckpointStore:
    """The checkpoints of a run.

    Parameters
    ----------
    settings : Checkpoints
        Where they are, and how many are kept.

    Attributes
    ----------
    settings : Checkpoints
        The same.
    """

    def __init__(self, settings: Checkpoints) -> None:
        self.settings = settings
        self._folder = settings.versions

    def newest(self) -> Saved | None:
        """Return the newest checkpoint that is whole, and log which are not.

        Raises
        ------
        CheckpointError
            If none is whole, or it was written by another version of flower-psl.
        """
        versions = self._folder.versions()
        for version in reversed(versions):
            where = str(self._folder.path_of(version))
            try:
                data = self._folder.read(version)
            except CheckpointError as error:  # of a disk that fails, for example
                _LOG.warning("%s The checkpoint before it takes its place.", error)
                continue
            try:
                return Saved(version, where, unpack_state(data, where))
            except DamagedStateError as error:
                _LOG.warning("%s The checkpoint before it takes its place.", error)
        if versions:
            raise CheckpointError(
                f"none of the {len(versions)} checkpoints in {self._folder.path} is whole; a run "
                "goes on from one that is. Bring one back, or begin anew in another folder."
            )
        return None

    def oldest(self, version: Version) -> Version:
        """Return the oldest checkpoint that is there until a new one is whole, or the new one."""
        return min([version, *self._folder.versions()])

    def write(self, version: Version, state: State) -> None:
        """Write a checkpoint, and remove those that are no longer kept.

        Those of a later version too: the run came to them once, but went on from an earlier
        one.

        Raises
        ------
        CheckpointError
            If the state holds what a file cannot.
        OSError
            If it cannot be written.
        """
        path = self._folder.write(version, pack_state(state))
        kept = [found for found in self._folder.versions() if found <= version]
        self._folder.keep_only(kept[-self.settings.keep :][0], version)
        _LOG.info("saved %s in %s", version, path)
