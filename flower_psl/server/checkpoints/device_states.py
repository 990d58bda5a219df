"""What devices train by themselves, saved and restored at the server's word."""

from collections.abc import Collection, Mapping
from typing import Protocol

from flower_psl.server.ledger import Ledger
from flower_psl.storage import Version
from flower_psl.transport import Transport
from flower_psl.wire import Phase, StepId, StepRequest


class HasDevices(Protocol):
    """What knows which devices have a segment of their own."""

    @property
    def apart(self) -> Collection[int]:
        """Their client keys."""


class DeviceStates:
    """Lets the devices that have a segment of their own save it, or go back to it.

    Parameters
    ----------
    transport : Transport
        What reaches them.
    nodes : mapping of int to int
        Where each client key is reached, now.
    stepper : HasDevices
        Knows which devices have a segment of their own.
    ledger : Ledger
        Knows who is out, and is not asked.
    seed : int
        The run's seed.
    timeout_s : float
        Bound on the wait for their answers, in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        nodes: Mapping[int, int],
        stepper: HasDevices,
        ledger: Ledger,
        *,
        seed: int,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._nodes = nodes
        self._stepper = stepper
        self._ledger = ledger
        self._seed = seed
        self._timeout_s = timeout_s

    def save_devices(self, run: str, version: Version, oldest: Version) -> None:
        """Let devices save their state as a version, and keep those from the oldest on.

        Raises
        ------
        PslError
            If one does not.
        """
        self._ask(Phase.SAVE, run, version, oldest)

    def restore_devices(self, run: str, version: Version) -> None:
        """Let devices go back to a version.

        Raises
        ------
        PslError
            If one does not.
        """
        self._ask(Phase.RESTORE, run, version)

    def _ask(
        self, phase: Phase, run: str, version: Version, oldest: Version | None = None
    ) -> None:
        requests = {
            self._nodes[key]: StepRequest(
                phase=phase,
                id=self._id(version, key),
                previous=None if oldest is None else self._id(oldest, key),
                run=run,
            )
            for key in sorted(self._stepper.apart)
            if key not in self._ledger.out
        }
        if requests:
            self._transport.exchange(requests, self._timeout_s).all()

    def _id(self, version: Version, key: int) -> StepId:
        return StepId(
            seed=self._seed,
            server_round=version.server_round,
            plan=0,
            step=version.step,
            client_key=key,
            start=0,
            batch_size=0,
        )
