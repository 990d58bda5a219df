"""Split training and the plain loop in turns, round by round, under the same load."""

import gc
import json
import time
from pathlib import Path

from flwr.app import ArrayRecord

from .plain_loop_process import PlainLoopProcess

ROUNDS = "rounds.jsonl"

# The first round makes the clients, and fills the caches of both sides.
WARM_UP_ROUNDS = 1

# A round over Flower messages may be one step, which is not enough of the loop to time.
_MIN_REFERENCE_STEPS = 5


class Alternation:
    """A central evaluation that does not evaluate: it runs the plain loop, and times both.

    While it runs, no client has anything to do. What it times is written to `ROUNDS`, a line
    a round: ``round``, the round's wall time ``ours_s``, and ``reference_s``, the seconds
    of each step of the plain loop.

    Parameters
    ----------
    loop : PlainLoopProcess
        The reference.
    steps_per_round : int
        Steps of a round of split training.
    out : Path
        The folder to write to.
    """

    def __init__(self, loop: PlainLoopProcess, steps_per_round: int, out: Path) -> None:
        self._loop = loop
        self._steps = max(steps_per_round, _MIN_REFERENCE_STEPS)
        self._file = out / ROUNDS
        self._file.unlink(missing_ok=True)
        self._resumed = time.perf_counter()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        """Run a round of the plain loop after a round of split training."""
        ours_s = time.perf_counter() - self._resumed
        reference_s = self._loop.run(server_round, self._steps)
        if server_round <= WARM_UP_ROUNDS:
            # All that the first steps have imported, once; else it falls into some step that is
            # measured, and takes longer than the step.
            gc.collect()
        line = {"round": server_round, "ours_s": ours_s, "reference_s": reference_s}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._resumed = time.perf_counter()
