import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError, PslError
from flower_psl.telemetry import Progress


class Clock:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(
    clock: Clock,
    *,
    rounds: int,
    steps: int,
    step_s: float,
    between_s: float = 0.0,
    interval_s: float = 5.0,
) -> list[tuple[float, str]]:
    """Train with a fixed pace; return each line with the time at which it came."""
    start = clock.now
    lines: list[tuple[float, str]] = []
    progress = Progress(
        rounds,
        log=lambda line: lines.append((clock.now - start, line)),
        clock=clock,
        interval_s=interval_s,
    )
    for server_round in range(1, rounds + 1):
        progress.start_round(server_round, steps)
        for step in range(1, steps + 1):
            clock.now += step_s
            progress.step(step, 1 / step)
        progress.end_round()
        clock.now += between_s
    return lines


def test_lines_of_a_run() -> None:
    # 2 rounds of 8 steps, 1 s a step, 4 s of evaluation after each round.
    assert run(Clock(), rounds=2, steps=8, step_s=1.0, between_s=4.0) == [
        (5.0, "round 1/2, step 5/8: loss 0.2000, 1.0 steps/s, 0:11 left"),
        # 9 steps in 9 s of training and 13 s in all: 7 more take 7 * 13 / 9 s.
        (13.0, "round 2/2, step 1/8: loss 1.0000, 1.0 steps/s, 0:10 left"),
        (18.0, "round 2/2, step 6/8: loss 0.1667, 1.0 steps/s, 0:03 left"),
    ]


def test_short_rounds_do_not_flood() -> None:
    lines = run(Clock(), rounds=100, steps=10, step_s=0.125)
    assert len(lines) == 25  # 125 s of training, a line each 5 s
    assert lines[0][1] == "round 4/100, step 10/10: loss 0.1000, 8.0 steps/s, 2:00 left"


def test_a_run_shorter_than_the_interval_is_silent() -> None:
    assert run(Clock(), rounds=3, steps=3, step_s=0.5) == []


def test_slow_steps_have_a_line_each() -> None:
    lines = run(Clock(), rounds=1, steps=1000, step_s=8.0)
    assert len(lines) == 1000
    assert lines[0][1] == "round 1/1, step 1/1000: loss 1.0000, 0.12 steps/s, 2:13:12 left"
    assert lines[-1][1].endswith("step 1000/1000: loss 0.0010, 0.12 steps/s, 0:00 left")


def test_a_resumed_run_counts_only_its_own_steps() -> None:
    clock = Clock()
    lines: list[str] = []
    progress = Progress(10, log=lines.append, clock=clock)
    progress.start_round(9, 10)
    clock.now += 5
    progress.step(5, 0.25)
    assert lines == ["round 9/10, step 5/10: loss 0.2500, 1.0 steps/s, 0:15 left"]


def test_a_round_that_goes_on_counts_only_the_steps_since() -> None:
    clock = Clock()
    lines: list[str] = []
    progress = Progress(2, log=lines.append, clock=clock)
    progress.start_round(1, 10, done=7)
    clock.now += 5
    progress.step(8, 0.25)
    progress.end_round()
    progress.start_round(2, 10)
    clock.now += 5
    progress.step(1, 0.25)
    assert lines == [
        "round 1/2, step 8/10: loss 0.2500, 0.2 steps/s, 1:00 left",
        "round 2/2, step 1/10: loss 0.2500, 0.2 steps/s, 0:45 left",
    ]


@settings(deadline=None)
@given(
    rounds=st.integers(1, 5),
    steps=st.integers(1, 20),
    step_s=st.floats(0.01, 20),
    between_s=st.floats(0, 20),
    interval_s=st.floats(0, 10),
)
def test_lines_are_an_interval_apart(
    rounds: int, steps: int, step_s: float, between_s: float, interval_s: float
) -> None:
    lines = run(
        Clock(),
        rounds=rounds,
        steps=steps,
        step_s=step_s,
        between_s=between_s,
        interval_s=interval_s,
    )
    times = [0.0, *(time for time, _ in lines)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= interval_s - 1e-6 for gap in gaps)
    assert len(lines) == rounds * steps or interval_s > step_s - 1e-6


@pytest.mark.parametrize("interval_s", [-1.0, math.nan, math.inf])
def test_an_interval_that_is_none_is_refused(interval_s: float) -> None:
    with pytest.raises(ConfigError, match=f"interval_s is {interval_s}; .*not negative.*Give"):
        Progress(1, log=print, interval_s=interval_s)


def test_steps_outside_a_round_are_refused() -> None:
    progress = Progress(2, log=print, clock=Clock())
    with pytest.raises(PslError, match=r"step\(\) .*outside a round; .*Call start_round\(\)"):
        progress.step(1, 0.5)
    with pytest.raises(PslError, match=r"end_round\(\) was called outside a round"):
        progress.end_round()
    progress.start_round(1, 1)
    progress.end_round()
    with pytest.raises(PslError, match="outside a round"):
        progress.step(1, 0.5)
