"""Lines that tell a person how far a run has come, never more than one an interval."""

import math
import time
from collections.abc import Callable

from flower_psl.errors import ConfigError, PslError


class Progress:
    """Tell how far a run has come, at most once an interval.

    A line reads ``round 2/10, step 12/23: loss 0.4321, 9.8 steps/s, 0:42 left``. Rounds
    get no line of their own, so that a run of short rounds stays as quiet as one of long
    rounds. The rate counts the time inside rounds only; the time left is that of the whole
    run, and takes what happens between rounds (evaluation) to go on as it has so far.

    Parameters
    ----------
    num_rounds : int
        Rounds of the run.
    log : callable
        Takes a line.
    clock : callable, optional
        Returns the time in seconds; it never goes back.
    interval_s : float, optional
        Least time between two lines, and before the first, in seconds.

    Raises
    ------
    ConfigError
        If `interval_s` is negative or not finite.
    """

    def __init__(
        self,
        num_rounds: int,
        *,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 5.0,
    ) -> None:
        if not (math.isfinite(interval_s) and interval_s >= 0):
            raise ConfigError(
                f"interval_s is {interval_s}; the time between two lines is finite and not "
                f"negative. Give seconds, e.g. 5.0, or 0 for a line each step."
            )
        self._num_rounds = num_rounds
        self._log = log
        self._clock = clock
        self._interval_s = interval_s
        self._run_started: float | None = None
        self._last_line = 0.0
        self._round_started: float | None = None
        self._server_round = 0
        self._num_steps = 0
        self._step = 0
        self._earlier_steps = 0  # of rounds that have ended
        self._earlier_training_s = 0.0

    def start_round(self, server_round: int, num_steps: int, done: int = 0) -> None:
        """Begin a round, or go on in it.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        num_steps : int
            Steps the round is to have; later rounds are taken to have as many.
        done : int
            Steps of it that were taken before the run was resumed.
        """
        now = self._clock()
        if self._run_started is None:
            self._run_started = self._last_line = now
        self._round_started = now
        self._server_round, self._num_steps, self._step = server_round, num_steps, done
        self._earlier_steps -= done

    def step(self, step: int, loss: float) -> None:
        """Count a finished step, and log a line if the last one is an interval old.

        Parameters
        ----------
        step : int
            The step in its round, from 1.
        loss : float
            The step's training loss.

        Raises
        ------
        PslError
            If no round has been started.
        """
        run_started, round_started = self._times("step()")
        self._step = step
        # Where clients come and go, a round can have more steps than it was to have.
        self._num_steps = max(self._num_steps, step)
        now = self._clock()
        if now - self._last_line < self._interval_s:
            return
        self._last_line = now
        steps = self._earlier_steps + step
        training_s = self._earlier_training_s + now - round_started
        left = self._num_steps - step + (self._num_rounds - self._server_round) * self._num_steps
        self._log(
            f"round {self._server_round}/{self._num_rounds}, step {step}/{self._num_steps}: "
            f"loss {loss:.4f}, {_rate(steps, training_s)}, "
            f"{_duration((now - run_started) / steps * left)} left"
        )

    def end_round(self) -> None:
        """End a round: what comes before the next one is no training time.

        Raises
        ------
        PslError
            If no round has been started.
        """
        _, round_started = self._times("end_round()")
        self._earlier_steps += self._step
        self._earlier_training_s += self._clock() - round_started
        self._round_started = None

    def _times(self, caller: str) -> tuple[float, float]:
        if self._run_started is None or self._round_started is None:
            raise PslError(
                f"{caller} was called outside a round; progress is counted from a round's "
                f"start. Call start_round() first."
            )
        return self._run_started, self._round_started


def _rate(steps: int, seconds: float) -> str:
    rate = steps / max(seconds, 1e-9)
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{rate:.2g} steps/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
