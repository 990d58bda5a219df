"""Checkpoints that lie, as a run goes on from them."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from flower_psl import cut
from flower_psl.server.checkpoints import Checkpoints
from flower_psl.server.checkpoints.checkpoint_store import CheckpointStore
from flower_psl.server.checkpoints.ledger_state import LedgerState
from flower_psl.server.checkpoints.run_saver import RunSaver
from flower_psl.server.learner import Learner
from flower_psl.server.ledger import Ledger
from flower_psl.storage import Version

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

MODEL = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
VERSION = Version(2, 40)
# None of them is in the name of the file.
PARTS = (
    *("'learner'", "'ledger'", "'identity'", "'environment'", "'run'", "'clients'"),
    *("saved tensor", "saved schedule", "header", "whole", "a saved state"),
)


class NoDevices:
    """What keeps nothing."""

    def save_devices(self, run: str, version: Version, oldest: Version) -> None: ...

    def restore_devices(self, run: str, version: Version) -> None: ...


class Run:
    """A run of a small model in a folder."""

    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(Checkpoints(folder=folder))
        self.ledger = Ledger()
        self.ledger.start_round(2, {3: 10, 5: 20}, {3: 10, 5: 20})
        self.learner = Learner(
            cut(copy.deepcopy(MODEL), at="1"),
            lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
            lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, step_size=3),
            total_steps=10,
            max_grad_norm=None,
        )
        self.saver = RunSaver(
            self.store,
            {"learner": self.learner, "ledger": LedgerState(self.ledger, [3, 5])},
            NoDevices(),
            clients={"train": {3: 10, 5: 20}, "test": {3: 0, 5: 0}},
            identity={"seed": 0},
            environment={"torch threads": 1},
        )

    def save(self) -> Path:
        for parameter in self.learner.model.parameters():
            parameter.grad = torch.rand_like(parameter)
        self.learner.take_step()
        self.learner.advance_schedule()
        self.saver.save(VERSION)
        [path] = Path(self.store._folder.path).glob("*.safetensors")
        return path

    def resume(self) -> None:
        """Go on from the newest checkpoint; what is accepted must be of the model."""
        kinds = {name: tensor.shape for name, tensor in MODEL.state_dict().items()}
        saved = self.store.newest()
        assert saved is not None
        self.saver.resume(saved)
        found = self.learner.model.state_dict()
        assert {name: tensor.shape for name, tensor in found.items()} == kinds
        assert set(self.ledger.used) == {3, 5}
        assert all(0 <= count <= 20 for count in self.ledger.used.values())


def test_the_truth_is_read(tmp_path: Path) -> None:
    Run(tmp_path).save()
    Run(tmp_path).resume()


def test_saves_that_lie(fuzzing: "type[Fuzz]", tmp_path: Path) -> None:
    path = Run(tmp_path).save()
    data = path.read_bytes()
    run = Run(tmp_path)

    def make(draws: "Draws") -> "Mutant":
        path.write_bytes(fuzzing.lying_state(draws, data))
        return fuzzing.mutant(run.resume, PARTS)

    with fuzzing.within(64_000_000):
        assert 1_500 < fuzzing.run(2_000, make) < 2_000
