"""A run's checkpoints: when they are due, what they hold, and how a run goes on from one."""

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from flower_psl.errors import CheckpointError, ConfigError, PslError
from flower_psl.server.checkpoints.checkpoint_store import CheckpointStore, Saved
from flower_psl.server.checkpoints.run_identity import Identity, check_identity, warn_of_changes
from flower_psl.server.stateful import Stateful
from flower_psl.storage import State, Version

_LOG = logging.getLogger("flwr.psl")


class DeviceStates(Protocol):
    """What keeps what devices train by themselves."""

    def save_devices(self, run: str, version: Version, oldest: Version) -> None:
        """Let devices save their state as a version, and keep those from the oldest on."""

    def restore_devices(self, run: str, version: Version) -> None:
        """Let devices go back to a version."""


class RunSaver:
    """Saves a run when it is time, and brings back what was saved.

    Parameters
    ----------
    store : CheckpointStore
        The checkpoints.
    parts : mapping of str to Stateful
        What changes on the server, by name.
    devices : DeviceStates
        What changes on the devices.
    clients : dict
        What its clients have; see `client_list`.
    identity, environment : mapping
        What the run is, and where it runs; see `run_identity`.

    Attributes
    ----------
    last : Version or None
        The last checkpoint that was written, or the one that the run goes on from.
    """

    def __init__(
        self,
        store: CheckpointStore,
        parts: Mapping[str, Stateful],
        devices: DeviceStates,
        *,
        clients: State,
        identity: Identity,
        environment: Identity,
    ) -> None:
        self._store = store
        self._parts = parts
        self._devices = devices
        self._clients = clients
        self._identity = identity
        self._environment = environment
        self._run = secrets.token_hex(8)
        self.last: Version | None = None

    @property
    def folder(self) -> str:
        """Where the checkpoints are."""
        return str(self._store.settings.folder)

    def resume(self, saved: Saved) -> Version:
        """Go on from a checkpoint, and return where the run is.

        Raises
        ------
        CheckpointError
            If it is that of another run, or a part of it cannot be used.
        """
        uses: dict[str, Callable[[Any], None]] = {
            "identity": partial(check_identity, own=self._identity),
            "environment": partial(warn_of_changes, own=self._environment),
            **{name: part.load_state for name, part in self._parts.items()},
            "run": self._go_on_as,
        }
        for name, use in uses.items():
            try:
                use(saved.state[name])
            except CheckpointError as error:
                raise CheckpointError(f"{saved.where}: {error}") from error
            except Exception as error:
                raise CheckpointError(
                    f"{saved.where}: its {name!r} cannot be used ({type(error).__name__}: "
                    f"{error}). Use a checkpoint that nobody has changed, or begin anew in "
                    "another folder."
                ) from error
        self.last = saved.version
        _LOG.info("resumed from %s, at %s", saved.where, saved.version)
        return saved.version

    def restore_devices(self) -> None:
        """Let devices go back to the checkpoint that the run goes on from.

        Raises
        ------
        PslError
            If one cannot.
        """
        if self.last is not None:
            self._devices.restore_devices(self._run, self.last)

    def after_step(self, version: Version, accepted_steps: int) -> None:
        """Save the run if so many of its steps were taken.

        Parameters
        ----------
        version : Version
            Where the run is.
        accepted_steps : int
            Its steps so far.
        """
        every = self._store.settings.every_steps
        if every is not None and accepted_steps % every == 0:
            self.save(version)

    def after_round(self, version: Version, *, is_last: bool) -> None:
        """Save the run if so many of its rounds have ended, or all of them.

        Parameters
        ----------
        version : Version
            Where the run is: in the next round, before its first step.
        is_last : bool
            Whether there is no next round.
        """
        every = self._store.settings.every_rounds
        if is_last or (every is not None and (version.server_round - 1) % every == 0):
            self.save(version)

    def save(self, version: Version, *, stops: bool = False) -> None:
        """Save the run.

        A checkpoint that cannot be written does not end the run, unless it is the first: then
        none may be possible.

        Parameters
        ----------
        version : Version
            Where the run is.
        stops : bool
            Whether the run stops here anyway.

        Raises
        ------
        ConfigError
            If the first checkpoint cannot be written.
        """
        try:
            # Should the run die before the new checkpoint is whole, it goes on from an old one.
            self._devices.save_devices(self._run, version, self._store.oldest(version))
            self._store.write(version, self._state())
        except (PslError, OSError) as error:
            if self.last is None:
                raise ConfigError(
                    f"the run cannot be saved in {self.folder}: {error} Change that, or "
                    "run without checkpoints."
                ) from error
            _LOG.warning(
                "no checkpoint of %s: %s; the run %s, and the last checkpoint is that of %s",
                *(version, error, "stops" if stops else "goes on", self.last),
            )
        else:
            self.last = version

    def _go_on_as(self, run: object) -> None:
        self._run = str(run)

    def _state(self) -> State:
        return {
            "run": self._run,
            "clients": self._clients,
            "identity": self._identity,
            "environment": self._environment,
            **{name: part.state() for name, part in self._parts.items()},
        }
