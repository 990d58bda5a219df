"""Where a device keeps what it trains by itself, so that a run can be resumed."""

from pathlib import Path

from flower_psl.client.local_training import LocalTraining
from flower_psl.errors import ClientError
from flower_psl.storage import Version, VersionFolder
from flower_psl.wire import Phase, StepId, StepReply, StepRequest


class StateFolder:
    """Versions of a device's own segment and optimizer, in files.

    A device can be ahead of the server's checkpoint: it may have gone on, or have saved
    for one that was never written. So each version has the round and the step of the
    checkpoint that it is for, and all are kept that the server may still ask for.

    Parameters
    ----------
    path : Path or None
        The folder. Clients and runs have folders of their own in it. None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @property
    def possible(self) -> bool:
        """Whether there is a folder."""
        return self._path is not None

    def answer(self, request: StepRequest, local: LocalTraining) -> StepReply:
        """Save or restore what a device trains.

        Parameters
        ----------
        request : StepRequest
            The request.
        local : LocalTraining
            What it trains.

        Raises
        ------
        ClientError
            If there is no folder, or nothing to save.
        CheckpointError
            If the version asked for is missing, damaged, or not of this segment.
        OSError
            If it cannot be written.
        """
        if self._path is None:
            raise ClientError(
                f"{request.id}: asked to {request.phase} what it trains, but the device names no "
                "folder for it. Make it with SplitClient(..., state_dir=...)."
            )
        folder = VersionFolder(self._path / f"client-{request.id.client_key}" / request.run)
        version = _version(request.id)
        if request.phase is Phase.RESTORE:
            local.state = folder.read(version)
        else:
            if (state := local.state) is None:
                raise ClientError(
                    f"{request.id}: asked to save what it trains, but the device has restarted "
                    "without it. Resume the run from an earlier checkpoint."
                )
            folder.write(version, [state])
            folder.keep_only(_version(request.previous or request.id), version)
        return StepReply(phase=request.phase, id=request.id)


def _version(step: StepId) -> Version:
    return Version(step.server_round, step.step)
