"""The records of a run, as a part of it that is saved."""

import logging
from collections.abc import Mapping

from flower_psl.storage import State
from flower_psl.telemetry import RunInfo, RunRecorder
from flower_psl.transport import Transport

_LOG = logging.getLogger("flwr.psl")


class RecorderState:
    """Starts a run's records, or lets them go on.

    Parameters
    ----------
    recorder : RunRecorder or None
        Writes them; nothing is recorded without one.
    info : RunInfo
        What is known of the run.
    transport : Transport
        Counts what it refuses.

    Attributes
    ----------
    info : RunInfo
        What is known of the run.
    """

    def __init__(self, recorder: RunRecorder | None, info: RunInfo, transport: Transport) -> None:
        self._recorder = recorder
        self.info = info
        self._transport = transport
        self._refused_before: Mapping[str, int] = {}

    @property
    def refused(self) -> dict[str, int]:
        """What was refused in the whole run, by reason."""
        before, now = self._refused_before, self._transport.refused
        return {reason: before.get(reason, 0) + now.get(reason, 0) for reason in {**before, **now}}

    def start(self) -> None:
        """Begin to record a run that is not resumed."""
        if self._recorder is not None:
            self._recorder.start(self.info)

    def state(self) -> State:
        """Return where the records are."""
        records = None if self._recorder is None else self._recorder.state()
        return {"records": records, "refused": self.refused}

    def load_state(self, state: State) -> None:
        """Go on recording behind what was there when `state` was asked for."""
        self._refused_before = {str(why): int(n) for why, n in state["refused"].items()}
        if self._recorder is None:
            return
        if state["records"] is None:
            _LOG.warning("the run was not recorded before: its records begin where it is resumed")
            self.start()
        else:
            self._recorder.resume(self.info, state["records"])
