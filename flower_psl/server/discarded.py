"""A step that is not taken."""

from collections.abc import Mapping

from flower_psl.errors import PslError


class DiscardedError(Exception):
    """Ends a step without an update.

    Parameters
    ----------
    failures : mapping of int to PslError
        What the clients that are the reason did, by client key.
    """

    def __init__(self, failures: Mapping[int, PslError]) -> None:
        super().__init__("; ".join(map(str, failures.values())))
        self.failures = dict(failures)
