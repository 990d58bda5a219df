"""The reference in a process of its own, as a script of one's own would run it."""

from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from .plain_loop import PlainLoop
from .workloads import WORKLOADS


class PlainLoopProcess:
    """A `PlainLoop` that shares no allocator and no caches with what it is compared to.

    Whatever the library does for a fast process, nothing of it is done there. It ends with the
    process that has started it.

    Parameters
    ----------
    workload : str
        What is trained, by its name in `WORKLOADS`.
    num_clients : int
        Clients whose data are pooled.
    """

    def __init__(self, workload: str, num_clients: int) -> None:
        context = get_context("spawn")
        self._there, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, workload, num_clients), daemon=True).start()
        theirs.close()

    def run(self, server_round: int, max_steps: int) -> list[float]:
        """Take the steps of a round, at most `max_steps`; return the seconds of each.

        Raises
        ------
        EOFError
            If the process has ended.
        """
        self._there.send((server_round, max_steps))
        seconds: list[float] = self._there.recv()
        return seconds


def _serve(there: Connection, workload: str, num_clients: int) -> None:
    torch.set_num_threads(1)
    loop = PlainLoop(WORKLOADS[workload], num_clients)
    try:
        while True:
            there.send(loop.run(*there.recv()))
    except EOFError:  # who asked is gone
        return
