"""How long a client computes, and how long it encodes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Runs from its making; what is marked as encoding is kept apart.

    Attributes
    ----------
    encode_s : float
        Seconds of the marked blocks.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.encode_s = 0.0

    @property
    def compute_s(self) -> float:
        """Seconds since the start, those of the marked blocks left out."""
        return time.perf_counter() - self._started - self.encode_s

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Mark a block as encoding or decoding."""
        started = time.perf_counter()
        yield
        self.encode_s += time.perf_counter() - started
