from collections.abc import Iterator

import pytest

from simulations import load_log
from simulations.load_log import Growth, LoadLog
from simulations.processes import ProcessLoad


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ProcessLoad]]:
    """Let each look, a second after the one before, see what is put here."""
    loads: list[ProcessLoad] = []
    seconds = iter(range(100))
    monkeypatch.setattr(load_log, "load_of", lambda pid: loads.pop(0))
    monkeypatch.setattr("simulations.load_log.time.time", lambda: float(next(seconds)))
    yield loads


def test_the_most_threads_and_files_before_are_compared_with_the_least_after(
    looks: list[ProcessLoad],
) -> None:
    looks += [
        ProcessLoad(100.0, 4, 3, 10),
        ProcessLoad(91.0, 5, 2, 9),
        ProcessLoad(500.0, 50, 40, 500),
        ProcessLoad(110.0, 3, 7, 12),
        ProcessLoad(120.0, 2, 8, 14),
    ]
    log = LoadLog(lambda: {"ServerApp": 1})
    for _ in range(5):
        log.look()
    assert log.growth((0.0, 1.0), (3.0, 9.0)) == [
        Growth("ServerApp", ProcessLoad(95.5, 5, 3, 10), ProcessLoad(115.0, 2, 7, 12))
    ]
    with pytest.raises(RuntimeError, match="ServerApp was not there from 5 to 9"):
        log.growth((0.0, 1.0), (5.0, 9.0))


def test_memory_that_grows_by_less_than_it_fluctuates_has_grown(looks: list[ProcessLoad]) -> None:
    memory_mb = [96.0, 100.0, 104.0, 102.0, 106.0, 110.0]
    looks += [ProcessLoad(each, 1, 1, 1) for each in memory_mb]
    log = LoadLog(lambda: {"ServerApp": 1})
    for _ in memory_mb:
        log.look()
    [growth] = log.growth((0.0, 2.0), (3.0, 5.0))
    assert (growth.early.resident_mb, growth.late.resident_mb) == (100.0, 106.0)


def test_a_process_that_has_ended_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(pid: int) -> ProcessLoad:
        raise ProcessLookupError

    monkeypatch.setattr(load_log, "load_of", ended)
    log = LoadLog(lambda: {"ServerApp": 1})
    log.look()
    assert log.growth((0.0, 1.0), (0.0, 1.0)) == []
