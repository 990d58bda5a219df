"""Kill a run's process, with SIGKILL, at random moments, and resume it: a script of its own.

It prints what differed, a line a moment; nothing means that every resumed run ended with the
same bits. In a process of its own because it forks, once all is imported and nothing else runs.
"""

import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flower_psl.telemetry import run_recorder
from tests.server.checkpoints.resumable import SETTINGS, left_behind, momentum, run

_FORK = multiprocessing.get_context("fork")
_NAMES = ("step", "round, copies", "none")


def main(num_kills: int, seed: int) -> None:
    """Kill as many runs, half of them at any moment and half within a write."""
    torch.set_num_threads(1)
    # PyTorch loads its compiler with the first optimizer: here, for all that are forked.
    momentum([torch.nn.Parameter(torch.zeros(1))])
    os.fsync = lambda fd: None  # what a killed process has written is not lost
    for name in ("draw_rounds", "draw_schedule"):
        setattr(run_recorder, name, lambda *args: [])
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        expected, took_s = {}, {}
        for name in _NAMES:
            started = time.perf_counter()
            expected[name] = _finish(name, Path(folder, name))
            took_s[name] = time.perf_counter() - started
        killed = number = 0
        while killed < num_kills:
            name, there = _NAMES[number % len(_NAMES)], Path(folder, str(number))
            if number % 2:
                moment = f"at write {(at := draws.randrange(20))}"
                child = _FORK.Process(target=_die_in_a_write, args=(name, there, at))
                child.start()
            else:
                moment = f"after {(after_s := draws.uniform(0.05, 0.9) * took_s[name]):.3f} s"
                child = _FORK.Process(target=_train, args=(name, there))
                child.start()
                child.join(after_s)
                child.kill()
            child.join()
            number += 1
            if child.exitcode == -signal.SIGKILL:  # and not at its end already
                killed += 1
                if _finish(name, there) != expected[name]:
                    print(f"{name}, killed {moment}: another end")
    print(f"killed {killed} times")


def _finish(name: str, folder: Path) -> dict[str, Any]:
    """Run to the end, in a process of its own, and return what is left behind."""
    child = _FORK.Process(target=_train, args=(name, folder))
    child.start()
    child.join()
    return dict(pickle.loads((folder / "end").read_bytes()))


def _train(name: str, folder: Path) -> None:
    result = run(SETTINGS[name], folder)
    (folder / "end").write_bytes(pickle.dumps(left_behind(result, folder / "out")))


def _die_in_a_write(name: str, folder: Path, at: int) -> None:
    """Train until a checkpoint, or a device's state, is half written, or has no name yet."""
    calls = 0

    def dying(real: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    _train(name, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
