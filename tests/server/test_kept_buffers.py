import pytest
import torch
from torch import nn

from flower_psl.server.kept_buffers import kept_buffers
from flower_psl.split import ModuleIndex


def test_buffers_move_with_a_block_that_ends() -> None:
    segment = nn.BatchNorm1d(3)
    with kept_buffers(ModuleIndex(segment)):
        segment(torch.randn(4, 3))
    assert int(segment.num_batches_tracked or 0) == 1


def test_buffers_are_put_back_if_it_raises() -> None:
    segment = nn.BatchNorm1d(3)
    before = {name: buffer.clone() for name, buffer in segment.named_buffers()}
    with pytest.raises(KeyError, match="discarded"), kept_buffers(ModuleIndex(segment)):
        segment(torch.randn(4, 3))
        segment.running_mean = torch.ones(3)
        raise KeyError("discarded")
    for name, buffer in segment.named_buffers():
        assert torch.equal(buffer, before[name])
