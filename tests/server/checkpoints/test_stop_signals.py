import logging
import signal
import threading
from collections.abc import Iterator

import pytest

from flower_psl.server.checkpoints.stop_signals import StopSignals


@pytest.fixture
def obeyed() -> Iterator[list[int]]:
    """Be whoever handles SIGTERM, and return what came."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


def test_a_signal_waits_until_it_is_obeyed(
    obeyed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flwr.psl"), StopSignals() as signals:
        assert not signals.asked
        signal.raise_signal(signal.SIGTERM)
        assert signals.asked
        assert obeyed == []
        signals.obey()
        assert obeyed == [signal.SIGTERM]
        assert not signals.asked
    assert obeyed == [signal.SIGTERM]
    [record] = caplog.records
    assert record.getMessage().startswith("SIGTERM: the run stops after this step")


def test_a_second_signal_is_obeyed_at_once(obeyed: list[int]) -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert obeyed == [signal.SIGTERM]


def test_what_was_held_back_is_obeyed_at_the_end(obeyed: list[int]) -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
    assert obeyed == [signal.SIGTERM]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_becomes_the_exception_that_it_is() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.asked
        signals.obey()


def test_handlers_are_as_before(obeyed: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_is_held_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    during = []

    def run() -> None:
        with StopSignals():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == [before]
