"""Where the time of a step goes."""

import time
from collections.abc import Mapping

from flower_psl.wire import StepReply


class PhaseClock:
    """Seconds of each phase of a step; they do not overlap."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """End a phase, or a part of one; the next one begins."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def seconds(self, *exchanges: Mapping[int, StepReply]) -> dict[str, float]:
        """Return the seconds by phase, and of all of them as ``total``.

        The phases called exchanges contain the work of the clients. They are taken apart
        into ``client_compute`` and ``client_encode``, those of the slowest client, and the
        rest, ``transfer``: tensors on their way, and clients that wait for others in their
        process.

        Parameters
        ----------
        exchanges : mappings of int to StepReply
            The replies of each exchange of the step.
        """
        slowest = [
            max(replies.values(), key=lambda reply: reply.busy_s)
            for replies in exchanges
            if replies
        ]
        exchanged_s = sum(s for phase, s in self._seconds.items() if phase.endswith("_exchange"))
        return self._seconds | {
            "client_compute": sum(reply.compute_s for reply in slowest),
            "client_encode": sum(reply.encode_s for reply in slowest),
            "transfer": max(exchanged_s - sum(reply.busy_s for reply in slowest), 0.0),
            "total": self._last - self._started,
        }
