"""When each step was taken, and by whom, as it happens."""

import json
import time
from pathlib import Path

from flower_psl import RunRecorder, StepRecord

STEP_TIMES = "step-times.jsonl"


class StepTimes(RunRecorder):
    """Records a run, and says of each step at once, in `STEP_TIMES`, that it was taken.

    A line has ``at``, in seconds of the system's clock, ``round``, ``step``, ``seconds``, of
    the step, and ``clients``, the keys of those who took part.

    Parameters
    ----------
    out : Path
        The run's folder.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        out.mkdir(parents=True, exist_ok=True)
        self._file = (out / STEP_TIMES).open("w", encoding="utf-8", buffering=1)

    def record_step(self, record: StepRecord) -> None:
        """Note the time of a step."""
        super().record_step(record)
        line = {
            "at": time.time(),
            "round": record.server_round,
            "step": record.step,
            "seconds": record.seconds["total"],
            "clients": [key for key, size in record.clients.items() if size],
        }
        self._file.write(json.dumps(line) + "\n")
