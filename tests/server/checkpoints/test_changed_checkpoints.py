"""Checkpoints that somebody has changed, checksum and all: refused by name, or harmless."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_psl import Checkpoints, PslError
from flower_psl.storage import pack_state, unpack_state
from tests.server.checkpoints.resumable import SETTINGS, Fuse, Killed, run

VALUES: list[Any] = [None, True, -1, 0, 2**62, 1.5, float("nan"), "x", [], {}, [1], torch.zeros(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, and do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name in ("draw_rounds", "draw_schedule"):
        monkeypatch.setattr(f"flower_psl.telemetry.run_recorder.{name}", lambda *args: [])


def changed(value: Any, draws: random.Random, depth: int = 0) -> Any:
    """Return a state with one thing in it replaced or left out."""
    if isinstance(value, (dict, list)) and value and (depth < 2 or draws.random() < 0.8):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draws.choice(list(keys))
        copy = value.copy()
        if isinstance(value, dict) and draws.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed(value[key], draws, depth + 1)
        return copy
    return draws.choice(VALUES)


def changed_but_for_the_optimizer(state: dict[str, Any], draws: random.Random) -> Any:
    """Leave what an optimizer keeps for each parameter: only the optimizer knows what it is."""
    learner = state["learner"]
    optimizer = {**learner["optimizer"], "state": {}}
    other = changed({**state, "learner": {**learner, "optimizer": optimizer}}, draws)
    match other:
        case {"learner": {"optimizer": {"state": dict()} as found}}:
            found["state"] = learner["optimizer"]["state"]
    return other


@pytest.mark.parametrize("name", ["step", "round, copies"])
def test_a_changed_checkpoint_is_refused_by_name_or_harmless(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    with pytest.raises(Killed):
        run(setting, tmp_path, Fuse(24))
    folder = Checkpoints(folder=tmp_path / "checkpoints").versions
    newest = folder.versions()[-1]
    state = unpack_state(folder.read(newest), "here")
    steps = (tmp_path / "out" / "steps.jsonl").read_bytes()
    draws, refused = random.Random(0), 0
    for _ in range(25):
        for later in folder.versions():
            folder.path_of(later).unlink()
        (tmp_path / "out" / "steps.jsonl").write_bytes(steps)
        folder.write(newest, pack_state(changed_but_for_the_optimizer(state, draws)))
        try:
            run(setting, tmp_path, fraction_evaluate=0.0)
        except PslError as error:
            refused += 1
            assert "Killed" not in str(error)
    assert refused > 5
