"""When and where a run is saved, and whether it is resumed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flower_psl.errors import ConfigError
from flower_psl.storage import VersionFolder


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When and where a run is saved, and whether it is resumed.

    A run that is resumed ends with the bits of one that was never stopped, if no time-out
    decided anything in either. It is saved before its first step, at the end of its last
    round, and as often as said here.

    Parameters
    ----------
    folder : str or Path
        A folder of the run's own; it is made if it is not there.
    every_steps : int, optional
        Save whenever so many steps of the run were taken.
    every_rounds : int, optional
        Save at the end of every so many rounds.
    keep : int
        How many of the last checkpoints are kept.
    resume : {"auto", "never"}
        Whether a run goes on from the newest checkpoint in the folder that is whole. With
        "never", a folder that has some is refused.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    folder: str | Path
    every_steps: int | None = None
    every_rounds: int | None = 1
    keep: int = 3
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not str(self.folder):
            raise ConfigError("folder is empty; a run is saved in a folder of its own. Name one.")
        for name in ("every_steps", "every_rounds", "keep"):
            value = getattr(self, name)
            may_be_none = name != "keep"
            if not (value is None and may_be_none) and not (type(value) is int and value >= 1):
                none = " or None" if may_be_none else ""
                raise ConfigError(f"{name} is {value!r}; it is an integer of 1 or more{none}")
        if self.resume not in ("auto", "never"):
            raise ConfigError(f"resume is {self.resume!r}; it is 'auto' or 'never'")

    @property
    def versions(self) -> VersionFolder:
        """The checkpoints in the folder."""
        return VersionFolder(Path(self.folder))

    @property
    def will_resume(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.resume == "auto" and bool(self.versions.versions())

    def check_folder(self) -> None:
        """Refuse to begin anew where an earlier run was saved.

        Raises
        ------
        ConfigError
            If the run is not to be resumed, but the folder has checkpoints.
        """
        found = self.versions.versions()
        if found and self.resume == "never":
            raise ConfigError(
                f"{self.folder} has {len(found)} checkpoints, the last of {found[-1]}, and resume "
                "is 'never'; a new run would take their place. Name another folder, remove them, "
                "or let resume be 'auto'."
            )
