import json
from pathlib import Path

from simulations.endurance.endurance_app.step_times import STEP_TIMES
from simulations.step_log import StepLog, TakenStep


def line(at: float, *clients: int) -> str:
    return json.dumps({"at": at, "seconds": 0.5, "clients": clients}) + "\n"


def test_steps_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / STEP_TIMES).write_text(line(0.5, 1))  # of an earlier run
    log = StepLog(tmp_path)
    log.read()
    assert log.steps == []
    second = line(2.0, 3)
    with (tmp_path / STEP_TIMES).open("w") as file:
        file.write(line(1.0, 0, 2) + second[:9])
        file.flush()
        log.read()
        assert log.steps == [TakenStep(1.0, 0.5, frozenset({0, 2}))]
        file.write(second[9:])
    log.close()
    assert log.steps[1:] == [TakenStep(2.0, 0.5, frozenset({3}))]
