"""Getting nodes that are not there, or not there yet, while a run goes on without them."""

import logging
import threading
from types import TracebackType

from flower_psl.transport.flower_sessions import FlowerSessions
from flower_psl.transport.stream_server import StreamServer

_LOG = logging.getLogger("flwr.psl")

# Flower needs about a minute to notice that a process is gone, so there is no hurry.
_PERIOD_S = 5.0
# Every so many of these periods the SuperLink is asked for all of its nodes. It takes a few
# milliseconds of this process, and some of the SuperLink's time.
_PERIODS_UNTIL_NEW = 3
_CLOSING_TIMEOUT_S = 30.0


class SessionKeeper:
    """Asks nodes to open their streams, from a thread that lasts as long as a block.

    Those are nodes that are lost, and nodes that were not there before.

    Parameters
    ----------
    server : StreamServer
        Knows who is not there.
    sessions : FlowerSessions
        Asks them. Nobody else may use it within the block.
    """

    def __init__(self, server: StreamServer, sessions: FlowerSessions) -> None:
        self._server = server
        self._sessions = sessions
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="psl-sessions", daemon=True)

    def __enter__(self) -> "SessionKeeper":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self._over.set()
        self._thread.join(_CLOSING_TIMEOUT_S)

    def _run(self) -> None:
        periods = 0
        while not self._over.wait(_PERIOD_S):
            periods += 1
            try:
                self._sessions.call_back(self._server.absent())
                if periods % _PERIODS_UNTIL_NEW == 0:
                    self._sessions.let_in()
            except Exception as error:  # a SuperLink that is away for a while, for example
                _LOG.warning(
                    "lost nodes could not be asked again: %s; the next try is in %g s",
                    error,
                    _PERIOD_S,
                )
