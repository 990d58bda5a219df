import pytest

from flower_psl.server.phase_clock import PhaseClock
from flower_psl.wire import Phase, StepId, StepReply


def reply(key: int, compute_s: float, encode_s: float) -> StepReply:
    return StepReply(
        phase=Phase.BACKWARD,
        id=StepId(0, 1, 0, 1, key, 0, 1),
        compute_s=compute_s,
        encode_s=encode_s,
    )


def test_laps_add_up() -> None:
    clock = PhaseClock()
    for phase in ("one", "two", "one"):
        clock.lap(phase)
    seconds = clock.seconds()
    assert list(seconds) == ["one", "two", "client_compute", "client_encode", "transfer", "total"]
    assert seconds["total"] == pytest.approx(seconds["one"] + seconds["two"])


def test_exchanges_are_taken_apart_by_their_slowest_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 1.0, 11.0, 13.0, 18.0])
    monkeypatch.setattr("flower_psl.server.phase_clock.time.perf_counter", lambda: next(times))
    clock = PhaseClock()
    for phase in ("encode", "forward_exchange", "server_forward", "backward_exchange"):
        clock.lap(phase)
    forwards = {1: reply(1, 4.0, 0.0), 2: reply(2, 3.0, 2.0)}
    backwards = {1: reply(1, 2.0, 1.0), 2: reply(2, 0.5, 0.0)}
    seconds = clock.seconds(forwards, backwards)
    assert (seconds["client_compute"], seconds["client_encode"]) == (3.0 + 2.0, 2.0 + 1.0)
    assert seconds["transfer"] == (10.0 + 5.0) - (5.0 + 3.0)
    assert seconds["total"] == 18.0


def test_without_a_backward_exchange_there_is_none_to_take_apart() -> None:
    clock = PhaseClock()
    clock.lap("forward_exchange")
    seconds = clock.seconds({1: reply(1, 0.0, 0.0)}, {})
    assert seconds["transfer"] == seconds["forward_exchange"]
