"""Signals to stop, obeyed when a run has been saved."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_LOG = logging.getLogger("flwr.psl")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Holds back the first SIGINT or SIGTERM while a block runs, until it is obeyed.

    The handlers that were there before, Python's own or Flower's, get the signal then; a
    second signal they get at once. In another thread than the process's main one signals
    cannot be handled, and nothing is held back.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._asked: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there was a signal that has not been obeyed."""
        return self._asked is not None

    def obey(self) -> None:
        """Let the handlers from before have the signal that was held back."""
        asked, self._asked = self._asked, None
        self._restore()
        if asked is not None:
            signal.raise_signal(asked)

    def __enter__(self) -> Self:
        """Begin to hold signals back."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Without a handler that Python knows of, there would be none to go back to.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Obey what was held back, if anything was."""
        self.obey()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self.obey()
            return
        self._asked = number
        _LOG.warning(
            "%s: the run stops after this step, once it is saved; a second one stops it at once",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
