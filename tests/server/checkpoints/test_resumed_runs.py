"""Runs that are stopped anywhere and resumed: they end as if nothing had happened."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.server.checkpoints.resumable import SETTINGS, Fuse, Killed, Setting, left_behind, run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, and do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name in ("draw_rounds", "draw_schedule"):
        monkeypatch.setattr(f"flower_psl.telemetry.run_recorder.{name}", lambda *args: [])


def whole(setting: Setting, folder: Path) -> dict[str, Any]:
    """Return what a run leaves that is never stopped, nor saved."""
    return left_behind(run(setting, folder, checkpoints=None), folder / "out")


def num_moments(setting: Setting, folder: Path) -> int:
    """Return how often a run that is saved can be stopped."""
    fuse = Fuse(10**9)
    run(setting, folder, fuse)
    return 10**9 - int(fuse.requests)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_run_killed_anywhere_ends_with_the_same_bits(setting: Setting, tmp_path: Path) -> None:
    expected = whole(setting, tmp_path / "whole")
    moments = num_moments(setting, tmp_path / "saved")
    for moment in range(0, moments, moments // 8):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            run(setting, folder, Fuse(moment))
        assert left_behind(run(setting, folder), folder / "out") == expected, moment


@pytest.mark.parametrize("name", ["round, one kept", "none, one kept"])
def test_a_run_killed_as_its_devices_save_goes_on_from_the_only_checkpoint(
    name: str, tmp_path: Path
) -> None:
    setting = SETTINGS[name]
    expected = whole(setting, tmp_path / "whole")
    # Of three devices that save after the first steps, some have, and the server has not.
    for moment in range(6, 33, 2):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            run(setting, folder, Fuse(moment))
        assert left_behind(run(setting, folder), folder / "out") == expected, moment


@pytest.mark.parametrize("name", ["step", "round, copies", "none"])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    expected = whole(setting, tmp_path / "whole")
    lifetime = num_moments(setting, tmp_path / "saved") * 2 // 5
    deaths = 0
    while deaths < 20:
        try:
            result = run(setting, tmp_path / "run", Fuse(lifetime))
            break
        except Killed:
            deaths += 1
    assert deaths >= 2
    assert left_behind(result, tmp_path / "run" / "out") == expected


def test_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS["round, copies"]
    expected = whole(setting, tmp_path / "whole")

    def die(*args: object, **options: object) -> None:
        raise Killed

    for moment, call in enumerate(("os.fsync", "os.replace") * 3):
        folder, calls = tmp_path / str(moment), iter(range(1000))

        def later(real: Any, *args: Any, last: int = 5 + 4 * moment, calls: Any = calls) -> Any:
            return die() if next(calls) == last else real(*args)

        real = getattr(os, call.removeprefix("os."))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(call, partial(later, real))
            run(setting, folder)
        assert left_behind(run(setting, folder), folder / "out") == expected, moment
