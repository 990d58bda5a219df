"""A folder of the last versions of something, a file each."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flower_psl.errors import CheckpointError

_NAME = re.compile(r"round-(\d{1,18})-step-(\d{1,18})\.safetensors")
_DRAFT = ".draft"


class Version(NamedTuple):
    """How far a run has come.

    Attributes
    ----------
    server_round, step : int
        The round that is trained, from 1, and the steps that were taken in it.
    """

    server_round: int
    step: int

    def __str__(self) -> str:
        """Return, for example, ``round 2, step 40``, or ``the end of round 1``."""
        if self.step:
            return f"round {self.server_round}, step {self.step}"
        return (
            f"the end of round {self.server_round - 1}" if self.server_round > 1 else "the start"
        )

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"round-{self.server_round}-step-{self.step}.safetensors"


class VersionFolder:
    """Versions of a state, as `pack_state` makes it, that are there as a whole or not at all.

    Parameters
    ----------
    path : Path
        The folder; `write` creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def versions(self) -> list[Version]:
        """Return the versions that are there, damaged ones too, the oldest first."""
        names = [found.name for found in self.path.glob("*.safetensors")]
        matches = [_NAME.fullmatch(name) for name in names]
        return sorted(Version(int(match[1]), int(match[2])) for match in matches if match)

    def path_of(self, version: Version) -> Path:
        """Return where a version is, or would be."""
        return self.path / version.file_name

    def read(self, version: Version) -> bytes:
        """Return a version's bytes, which may be damaged.

        Raises
        ------
        CheckpointError
            If it is missing, or cannot be read.
        """
        path = self.path_of(version)
        try:
            return path.read_bytes()
        except OSError as error:
            there = ", ".join(map(str, self.versions())) or "none"
            raise CheckpointError(
                f"{path}: {error.strerror}; the folder has to have what is gone on from (it has: "
                f"{there}). Bring the folder back, or begin anew with another."
            ) from error

    def write(self, version: Version, pieces: Iterable[bytes | memoryview]) -> Path:
        """Write a version, in the place of an earlier one of its name, and return its path.

        The file gets its name once all of it is on the disk, so that a process that dies
        meanwhile leaves a draft and what was there before.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path_of(version)
        draft = path.with_suffix(_DRAFT)
        try:
            with draft.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(self.path)
        return path

    def keep_only(self, oldest: Version, newest: Version) -> None:
        """Remove versions before `oldest` and after `newest`, and drafts."""
        for version in self.versions():
            if not oldest <= version <= newest:
                self.path_of(version).unlink(missing_ok=True)
        for draft in self.path.glob(f"round-*-step-*{_DRAFT}"):
            draft.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Bring a new name to the disk, where the system can do that for a folder."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
