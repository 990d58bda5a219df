import weakref

import torch
from torch import Tensor, nn

from flower_psl.split.cut import cut
from flower_psl.split.segment import Segment


class Indexing(nn.Module):
    """Slices, keyword arguments and methods between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.stem(x).view(-1, 4)
        y: Tensor = self.head(torch.cat([n[:, :1], n[..., -1:]], dim=1))
        return y.flatten(start_dim=0)


def test_nested_arguments_are_filled_in() -> None:
    model = Indexing()
    x = torch.randn(3, 4)
    assert torch.equal(cut(model, "stem")(x), model(x))


def test_values_are_dropped_after_their_last_use() -> None:
    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append([ref() is not None for ref in seen])
            y = x + 1
            seen.append(weakref.ref(y))
            return y

    seen: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []
    split = cut(nn.Sequential(Watch(), Watch(), Watch(), Watch()), "0")
    with torch.no_grad():
        split(torch.zeros(1))
    # Besides the activations, which the caller holds, a layer finds only its own input.
    assert alive[3] == [True, False, True]


def test_a_segment_is_one_graph_for_each_mode() -> None:
    split = cut(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 1)), "1")
    assert isinstance(split.client, Segment)
    x = torch.randn(3, 2)
    split.eval()
    assert torch.equal(split.client(x), split.client(x))
    assert not split.client.get_submodule("1").training
