import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_psl.errors import CheckpointError, ClientError, ConfigError
from flower_psl.server.checkpoints import Checkpoints
from flower_psl.server.checkpoints.checkpoint_store import CheckpointStore, Saved
from flower_psl.server.checkpoints.run_saver import RunSaver
from flower_psl.storage import State, Version


class Counter:
    """A part of a run."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def state(self) -> State:
        return {"number": self.number, "tensor": torch.tensor(self.number)}

    def load_state(self, state: State) -> None:
        self.number = int(state["tensor"]) + int(state["number"]) - int(state["number"])


class Devices:
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Version, Version | None]] = []
        self.runs: set[str] = set()
        self.fails = False

    def save_devices(self, run: str, version: Version, oldest: Version) -> None:
        if self.fails:
            raise ClientError("client 3 names no folder")
        self.asked.append(("save", version, oldest))
        self.runs.add(run)

    def restore_devices(self, run: str, version: Version) -> None:
        self.asked.append(("restore", version, None))
        self.runs.add(run)


class Run:
    """A saver with its parts."""

    def __init__(
        self, folder: Path, identity: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self.store = CheckpointStore(Checkpoints(folder=folder, **settings))
        self.counter = Counter()
        self.devices = Devices()
        self.saver = RunSaver(
            self.store,
            {"counter": self.counter},
            self.devices,
            clients={"train": {0: 5}, "test": {0: 0}},
            identity=dict(identity or {"seed": 0}),
            environment={"torch threads": 1},
        )

    def newest(self) -> Saved:
        saved = self.store.newest()
        assert saved is not None
        return saved


def versions(folder: Path) -> list[Version]:
    return Checkpoints(folder=folder).versions.versions()


def test_a_run_goes_on_with_its_parts_and_devices(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.saver.save(Version(1, 0))
    run.counter.number = 7
    run.saver.save(Version(1, 5))
    again = Run(tmp_path)
    again.saver.resume(again.newest())
    again.saver.restore_devices()
    assert again.counter.number == 7
    assert again.saver.last == Version(1, 5)
    again.saver.save(Version(1, 6))
    assert again.devices.asked == [
        ("restore", Version(1, 5), None),
        ("save", Version(1, 6), Version(1, 0)),
    ]
    assert again.devices.runs == run.devices.runs
    assert Run(tmp_path / "new").devices.runs != run.devices.runs


def test_it_is_saved_when_it_is_time(tmp_path: Path) -> None:
    run = Run(tmp_path, every_steps=3, every_rounds=2, keep=100)
    accepted = 0
    for server_round in range(1, 6):
        for step in range(1, 5):
            accepted += 1
            run.saver.after_step(Version(server_round, step), accepted)
        run.saver.after_round(Version(server_round + 1, 0), is_last=server_round == 5)
    assert versions(tmp_path) == [
        *((1, 3), (2, 2), (3, 0), (3, 1), (3, 4), (4, 3), (5, 0), (5, 2), (6, 0)),
    ]


def test_only_the_end_is_saved_if_no_time_is_given(tmp_path: Path) -> None:
    run = Run(tmp_path, every_rounds=None)
    run.saver.after_step(Version(1, 1), 1)
    run.saver.after_round(Version(2, 0), is_last=False)
    assert versions(tmp_path) == []
    run.saver.after_round(Version(3, 0), is_last=True)
    assert versions(tmp_path) == [(3, 0)]


def test_a_first_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file" / "folder")
    with pytest.raises(ConfigError, match=r"cannot be saved in .*file/folder: .*Change that, or"):
        run.saver.save(Version(1, 0))


@pytest.mark.parametrize("who", ["disk", "device", "state"])
def test_a_later_one_that_cannot_be_written_does_not(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.saver.save(Version(1, 0))
    run.saver.save(Version(2, 0))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if who == "disk":
            patch.setattr("os.fsync", full)
        elif who == "device":
            run.devices.fails = True
        else:
            patch.setattr(run.counter, "state", lambda: {"hook": max})
        run.saver.save(Version(3, 0))
    run.devices.fails = False
    message = caplog.records[-1].getMessage()
    assert message.startswith("no checkpoint of the end of round 2: ")
    assert message.endswith(
        "; the run goes on, and the last checkpoint is that of the end of round 1"
    )
    assert caplog.records[-1].levelno == logging.WARNING
    assert versions(tmp_path) == [(1, 0), (2, 0)]
    run.saver.save(Version(4, 0))
    assert versions(tmp_path) == [(1, 0), (2, 0), (4, 0)]


def test_another_run_is_refused_with_the_checkpoint_named(tmp_path: Path) -> None:
    Run(tmp_path).saver.save(Version(1, 0))
    again = Run(tmp_path, identity={"seed": 1})
    with pytest.raises(CheckpointError, match=r"step-0.safetensors: .*seed is 0 there and 1 here"):
        again.saver.resume(again.newest())


@pytest.mark.parametrize(
    "changes",
    [
        {"counter": None},
        {"counter": {"number": "x", "tensor": torch.tensor(1)}},
        {"counter": {"number": 1}},
        {"identity": [1]},
        {"environment": 3},
    ],
)
def test_a_part_that_cannot_be_used_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    Run(tmp_path).saver.save(Version(1, 0))
    again = Run(tmp_path)
    saved = again.newest()
    [name] = changes
    with pytest.raises(CheckpointError, match=rf"step-0.safetensors: .*{name}.*begin anew"):
        again.saver.resume(saved._replace(state=saved.state | changes))
    assert again.devices.asked == []


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    Run(tmp_path).saver.save(Version(1, 0))
    again = Run(tmp_path)
    saved = again.newest()
    for name in sorted(set(saved.state) - {"clients"}):
        rest = {key: value for key, value in saved.state.items() if key != name}
        with pytest.raises(CheckpointError, match=f"its '{name}' cannot be used"):
            again.saver.resume(saved._replace(state=rest))
