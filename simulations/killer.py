"""Kills processes of devices, or whole devices, in mid-step, by a seeded script."""

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.step_log import StepLog, TakenStep

_POLL_S = 0.01
# Steps before each kill.
_STEPS_BETWEEN = 10
# Every so many kills it is a device, and not only the process of its ClientApp.
_DEVICE_EVERY = 3


@dataclass(frozen=True)
class Kill:
    """A kill.

    Attributes
    ----------
    client_key : int
        Whose.
    at : float
        When, in seconds of the system's clock.
    into_step : float
        How much of a usual step's time had passed since the last one was taken.
    whole_device : bool
        Whether all processes of the device were killed, and not only that of the ClientApp.
    """

    client_key: int
    at: float
    into_step: float
    whole_device: bool = False


@dataclass(frozen=True)
class Aftermath:
    """What followed a kill.

    Attributes
    ----------
    kill : Kill
        The kill.
    gap_s : float
        Seconds until a step was taken without the client.
    away_s : float
        Seconds until it took part again; infinite if it did not.
    """

    kill: Kill
    gap_s: float
    away_s: float


class Killer:
    """Kills a process of a client that takes part, again and again; every third time its device.

    Parameters
    ----------
    log : StepLog
        The run's steps.
    process_of : callable
        Returns the process of a client's ClientApp, if there is one.
    kill_device : callable
        Kills all processes of a client's device.
    seed : int
        Of the script: who is killed, and when in a step.
    most_away : int
        How many clients may be away at once.
    """

    def __init__(
        self,
        log: StepLog,
        process_of: Callable[[int], int | None],
        kill_device: Callable[[int], None],
        *,
        seed: int,
        most_away: int,
    ) -> None:
        self.kills: list[Kill] = []
        self._log = log
        self._process_of = process_of
        self._kill_device = kill_device
        self._draws = np.random.default_rng(seed)
        self._most_away = most_away

    def kill(self, moments: int, num_clients: int, is_over: Callable[[], bool]) -> None:
        """Kill until it has done so at a number of moments, or the run is over.

        Parameters
        ----------
        moments : int
            How many.
        num_clients : int
            Clients of the run.
        is_over : callable
            Tells whether it is.
        """
        steps = self._log.steps
        quiet_since = 0
        while len(self.kills) < moments and not is_over():
            time.sleep(_POLL_S)
            self._log.read()
            if len(steps) - quiet_since < _STEPS_BETWEEN:
                continue
            here = sorted(steps[-1].clients)
            if num_clients - len(here) < self._most_away:
                step_s = float(np.median([step.seconds for step in steps[-_STEPS_BETWEEN:]]))
                self._kill(here[self._draws.integers(len(here))], step_s)
                quiet_since = len(steps)

    def _kill(self, key: int, step_s: float) -> None:
        into_step = float(self._draws.random())
        if (process := self._process_of(key)) is None:
            return
        time.sleep(into_step * step_s)
        whole_device = (len(self.kills) + 1) % _DEVICE_EVERY == 0
        if whole_device:
            self._kill_device(key)
        else:
            os.kill(process, signal.SIGKILL)
        self.kills.append(Kill(key, time.time(), into_step, whole_device))


def aftermath(kill: Kill, steps: Sequence[TakenStep]) -> Aftermath:
    """Return what followed a kill.

    Parameters
    ----------
    kill : Kill
        The kill.
    steps : sequence of TakenStep
        The run's steps, all of them.
    """
    after = [step for step in steps if step.at > kill.at]
    without = next((step.at for step in after if kill.client_key not in step.clients), math.inf)
    back = (s.at for s in after if s.at > without and kill.client_key in s.clients)
    return Aftermath(kill, without - kill.at, next(back, math.inf) - kill.at)
