"""Saved states that lie, as a device reads its own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from flower_psl.client.local_segment import LocalSegment
from flower_psl.split import ModuleIndex

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

SEGMENT = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
CPU = torch.device("cpu")


def new_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)


def saved() -> bytes:
    """Return what a device keeps after a step."""
    own = LocalSegment(SEGMENT, ModuleIndex(SEGMENT).tensors, new_optimizer, CPU)
    for parameter in own._segment.parameters.values():
        parameter.grad = torch.rand_like(parameter)
    own._optimizer.step()
    return own.state()


def read(data: bytes) -> None:
    """Resume from a state; what is accepted must be of the segment."""
    own = LocalSegment.resume(SEGMENT, data, new_optimizer, CPU)
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in own.tensors().items()}
    assert kinds == {
        name: (tensor.shape, tensor.dtype) for name, tensor in ModuleIndex(SEGMENT).tensors.items()
    }


def test_the_truth_is_read(fuzzing: "type[Fuzz]") -> None:
    data = saved()
    assert fuzzing.sealed(data) == data
    read(data)


def test_states_that_lie(fuzzing: "type[Fuzz]") -> None:
    data = saved()

    def make(draws: "Draws") -> "Mutant":
        lying = fuzzing.lying_state(draws, data)
        fields = ["state", "header", "tensors", "checksum", "saved optimizer"]
        return fuzzing.mutant(lambda: read(lying), fields)

    with fuzzing.within(64_000_000):
        assert 6_000 < fuzzing.run(8_000, make) < 8_000
