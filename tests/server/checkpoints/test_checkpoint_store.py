import logging
from pathlib import Path

import pytest

from flower_psl.errors import CheckpointError
from flower_psl.server.checkpoints import Checkpoints
from flower_psl.server.checkpoints.checkpoint_store import CheckpointStore
from flower_psl.storage import Version


def filled(folder: Path, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(Checkpoints(folder=folder, keep=keep))
    for step in steps:
        store.write(Version(1, step), {"step": step})
    return store


def steps_in(folder: Path) -> list[int]:
    return [version.step for version in Checkpoints(folder=folder).versions.versions()]


def damage(folder: Path, step: int) -> None:
    path = folder / f"round-1-step-{step}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_an_empty_folder_has_no_newest(tmp_path: Path) -> None:
    assert filled(tmp_path / "none").newest() is None


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    filled(tmp_path, 0, 10, 20, 30, 40)
    assert steps_in(tmp_path) == [20, 30, 40]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_oldest_is_one_that_is_there_until_the_new_one_is_whole(
    keep: int, tmp_path: Path
) -> None:
    store = filled(tmp_path, 0, 10, 20, 30, 40, keep=keep)
    assert store.oldest(Version(1, 50)) == Version(1, steps_in(tmp_path)[0])
    assert filled(tmp_path / "new", keep=keep).oldest(Version(1, 0)) == Version(1, 0)


def test_the_newest_whole_one_is_read_and_the_damaged_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 10, 20, 30)
    damage(tmp_path, 30)
    damage(tmp_path, 20)
    saved = store.newest()
    assert saved is not None
    assert (saved.version, saved.state) == (Version(1, 10), {"step": 10})
    assert saved.where.endswith("round-1-step-10.safetensors")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2
    assert "round-1-step-30.safetensors: its checksum" in lines[0]
    assert lines[1].endswith("The checkpoint before it takes its place.")


def test_what_a_run_came_to_before_it_went_back_is_removed(tmp_path: Path) -> None:
    store = filled(tmp_path, 10, 20, 30)
    damage(tmp_path, 30)
    store.write(Version(1, 25), {})
    assert steps_in(tmp_path) == [10, 20, 25]


def test_a_folder_without_a_whole_one_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, 10, 20)
    damage(tmp_path, 10)
    damage(tmp_path, 20)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* whole; .*another"):
        store.newest()
