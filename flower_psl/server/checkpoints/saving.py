"""A run that is saved while it goes on, or not at all."""

import logging
from types import TracebackType
from typing import Self

from flower_psl.errors import PslError
from flower_psl.server.checkpoints.run_saver import RunSaver
from flower_psl.server.checkpoints.stop_signals import StopSignals
from flower_psl.server.ledger import Ledger
from flower_psl.storage import Version

_LOG = logging.getLogger("flwr.psl")


class Saving:
    """Saves a run while a block lasts, and obeys signals to stop when it is saved.

    Whoever stops the run, by a signal or an error, is told how to go on.

    Parameters
    ----------
    saver : RunSaver or None
        Saves it; None does nothing.
    ledger : Ledger
        Knows where the run is.
    """

    def __init__(self, saver: RunSaver | None, ledger: Ledger) -> None:
        self._saver = saver
        self._ledger = ledger
        self._signals = StopSignals()

    def between_steps(self) -> None:
        """Save the run if it is time, or it is to stop."""
        if self._saver is not None:
            self._saver.after_step(self._in_round, self._ledger.accepted_steps)
            self._obey(self._in_round)

    def between_rounds(self, *, is_last: bool) -> None:
        """Save the run if it is time, or it is to stop."""
        if self._saver is not None:
            at = Version(self._ledger.server_round + 1, 0)
            self._saver.after_round(at, is_last=is_last)
            self._obey(at)

    def before_stop(self, server_round: int) -> None:
        """Save the run, which cannot go on as it is.

        Parameters
        ----------
        server_round : int
            The round that it cannot end, or not begin.
        """
        if self._saver is not None:
            begun = self._ledger.server_round == server_round
            self._saver.save(self._in_round if begun else Version(server_round, 0), stops=True)

    def __enter__(self) -> Self:
        """Begin to hold signals back."""
        if self._saver is not None:
            self._signals.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell how to go on after an error, and obey what was held back."""
        try:
            if error is not None and self._saver is not None:
                advice = (
                    f"The run is saved up to {self._saver.last}, in {self._saver.folder}; start "
                    "it again to go on from there."
                )
                if isinstance(error, PslError):
                    raise type(error)(f"{error} {advice}") from error
                _LOG.warning("%s", advice)
        finally:
            self._signals.__exit__(kind, error, traceback)

    @property
    def _in_round(self) -> Version:
        return Version(self._ledger.server_round, self._ledger.step)

    def _obey(self, at: Version) -> None:
        if self._signals.asked and self._saver is not None:
            if self._saver.last != at:
                self._saver.save(at)
            self._signals.obey()
