import queue
import threading
from collections.abc import Collection

import pytest

from flower_psl.transport import session_keeper
from flower_psl.transport.flower_sessions import FlowerSessions
from flower_psl.transport.session_keeper import SessionKeeper
from flower_psl.transport.stream_server import StreamServer


class FakeServer(StreamServer):
    def __init__(self, *absent: list[int]) -> None:
        self._absent = iter(absent)

    def absent(self) -> list[int]:
        return next(self._absent, [])


class FakeSessions(FlowerSessions):
    """Keeps who is called back, and when new nodes are let in; the first call fails."""

    def __init__(self) -> None:
        self.called: queue.SimpleQueue[Collection[int] | None] = queue.SimpleQueue()
        self._is_gone = True

    def call_back(self, absent: Collection[int]) -> None:
        if self._is_gone:
            self._is_gone = False
            raise ConnectionError("no SuperLink")
        self.called.put(absent)

    def let_in(self) -> None:
        self.called.put(None)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keeper, "_PERIOD_S", 0.001)


def test_absent_nodes_are_called_back_again_and_again_whatever_goes_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = FakeSessions()
    with SessionKeeper(FakeServer([7], [7, 9], [9]), sessions):
        assert sessions.called.get(timeout=20) == [7, 9]
        assert sessions.called.get(timeout=20) == [9]
        assert [sessions.called.get(timeout=20) for _ in range(6)] == [None, [], [], [], None, []]
    assert "lost nodes could not be asked again: no SuperLink; the next try" in caplog.text


def test_the_thread_ends_with_the_block() -> None:
    def running() -> bool:
        return any(thread.name == "psl-sessions" for thread in threading.enumerate())

    with pytest.raises(ZeroDivisionError), SessionKeeper(FakeServer(), FakeSessions()):
        assert running()
        _ = 1 / 0
    assert not running()
