import os
from pathlib import Path

import pytest

from flower_psl.errors import CheckpointError
from flower_psl.storage import Version, VersionFolder


def pieces(number: int) -> list[bytes | memoryview]:
    return [b"number ", memoryview(str(number).encode())]


@pytest.fixture
def folder(tmp_path: Path) -> VersionFolder:
    return VersionFolder(tmp_path / "runs" / "first")


def test_versions_are_in_the_order_of_the_run(folder: VersionFolder) -> None:
    assert folder.versions() == []
    order = [Version(0, 0), Version(2, 0), Version(2, 9), Version(2, 10), Version(10, 0)]
    for version in reversed(order):
        folder.write(version, pieces(version.step))
    (folder.path / "notes.safetensors").write_bytes(b"")
    (folder.path / "round-1-step-1.draft").write_bytes(b"")
    assert folder.versions() == order
    assert folder.read(Version(2, 9)) == b"number 9"


@pytest.mark.parametrize(
    ("version", "said"),
    [((2, 40), "round 2, step 40"), ((2, 0), "the end of round 1"), ((1, 0), "the start")],
)
def test_a_version_is_named_as_people_name_it(version: tuple[int, int], said: str) -> None:
    assert str(Version(*version)) == said


def test_a_version_takes_the_place_of_an_earlier_one(folder: VersionFolder) -> None:
    folder.write(Version(1, 0), pieces(1))
    path = folder.write(Version(1, 0), pieces(2))
    assert path.name == "round-1-step-0.safetensors"
    assert folder.read(Version(1, 0)) == b"number 2"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    call: str, folder: VersionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(Version(1, 0), pieces(1))

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, call, fail)
        folder.write(Version(1, 0), pieces(2))
    assert [path.name for path in folder.path.iterdir()] == ["round-1-step-0.safetensors"]
    assert folder.read(Version(1, 0)) == b"number 1"


def test_a_process_that_dies_while_it_writes_leaves_what_was_there(
    folder: VersionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(Version(1, 0), pieces(1))

    def die(*args: object, **options: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", die)  # nothing is tidied up
        folder.write(Version(1, 0), pieces(2))
    assert folder.path.joinpath("round-1-step-0.draft").exists()
    assert folder.versions() == [Version(1, 0)]
    assert folder.read(Version(1, 0)) == b"number 1"


def test_a_missing_version_is_named_beside_those_there(folder: VersionFolder) -> None:
    folder.write(Version(1, 3), pieces(1))
    rule = r"round-2-step-0.safetensors: No such file.*it has: round 1, step 3\). Bring"
    with pytest.raises(CheckpointError, match=rule):
        folder.read(Version(2, 0))


def test_only_versions_in_a_range_are_kept(folder: VersionFolder) -> None:
    for number in range(5):
        folder.write(Version(1, number), pieces(number))
    (folder.path / "round-9-step-1.draft").write_bytes(b"half")
    (folder.path / "notes.txt").write_text("mine")
    folder.keep_only(Version(1, 1), Version(1, 3))
    assert [version.step for version in folder.versions()] == [1, 2, 3]
    assert sorted(path.name for path in folder.path.iterdir())[0] == "notes.txt"
    assert not list(folder.path.glob("*.draft"))
