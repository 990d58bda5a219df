from itertools import islice
from typing import TYPE_CHECKING

import pytest

from flower_psl import WaitError
from flower_psl.transport.polling import poll_delays, wait_for_nodes
from flower_psl.transport.transport import Transport

if TYPE_CHECKING:
    from tests.conftest import FakeTime


class Arrivals:
    """Nodes that come one a poll."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.polls = 0

    def nodes(self) -> list[int]:
        self.polls += 1
        return list(range(min(self.polls - 1, self._total)))


def wait(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch, clock: "FakeTime", timeout_s: float
) -> list[int]:
    monkeypatch.setattr("flower_psl.transport.polling.time", clock)
    transport: Transport = arrivals  # type: ignore[assignment]  # nothing else is asked of it
    return wait_for_nodes(transport, 3, timeout_s)


def test_pauses_grow_with_the_wait_between_their_bounds() -> None:
    delays = list(islice(poll_delays(), 400))
    assert delays == sorted(delays)
    assert delays[0] == 0.002
    assert delays[-1] == 0.25
    for index, delay_s in enumerate(delays):
        assert delay_s in (0.002, 0.25) or delay_s == pytest.approx(0.05 * sum(delays[:index]))


def test_a_wait_of_a_minute_takes_few_polls() -> None:
    waited_s, polls = 0.0, 0
    for delay_s in poll_delays():
        if waited_s >= 60:
            break
        waited_s += delay_s
        polls += 1
    assert polls < 60 / 0.25 + 120


def test_enough_nodes_are_found_without_a_pause(
    monkeypatch: pytest.MonkeyPatch, fake_time: "FakeTime"
) -> None:
    arrivals = Arrivals(5)
    arrivals.polls = 5
    assert wait(arrivals, monkeypatch, fake_time, 10) == [0, 1, 2, 3, 4]
    assert fake_time.slept_s == []


def test_nodes_that_come_later_are_awaited(
    monkeypatch: pytest.MonkeyPatch, fake_time: "FakeTime"
) -> None:
    assert wait(Arrivals(3), monkeypatch, fake_time, 10) == [0, 1, 2]
    assert len(fake_time.slept_s) == 3


@pytest.mark.parametrize("timeout_s", [0.0, 1.5, 120.0])
def test_the_wait_is_bounded(
    monkeypatch: pytest.MonkeyPatch, fake_time: "FakeTime", timeout_s: float
) -> None:
    started = fake_time.now_s
    with pytest.raises(WaitError, match=rf"nodes after {timeout_s:g} s; min_.* is 3\. Start more"):
        wait(Arrivals(2), monkeypatch, fake_time, timeout_s)
    assert timeout_s <= fake_time.now_s - started <= timeout_s + 0.25
