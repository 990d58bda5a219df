import torch
from torch import Tensor, nn

from flower_psl.split import ModuleIndex, client_pass


class Frozen(nn.Module):
    """A segment whose BatchNorm never leaves evaluation mode, and that counts its asking."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.asked = 0

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        self.asked += 1
        return self


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_parameters_and_buffers_have_their_names() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    index = ModuleIndex(module)
    assert index.parameters == dict(module.named_parameters())
    assert list(index.buffers) == [name for name, _ in module.named_buffers()]
    assert list(index.tensors) == [*index.parameters, *index.buffers]
    assert not any(tensor.requires_grad for tensor in index.tensors.values())
    assert index.tensors["0.weight"].data_ptr() == index.parameters["0.weight"].data_ptr()


def test_a_buffer_that_a_layer_has_replaced_is_the_new_one() -> None:
    layer = nn.BatchNorm1d(3)
    index = ModuleIndex(layer)
    layer.running_mean = replaced = torch.ones(3)
    assert index.buffers["running_mean"] is replaced


def test_a_module_without_buffers_has_none() -> None:
    assert ModuleIndex(nn.Linear(2, 3)).buffers == {}


def test_tied_tensors_are_seen() -> None:
    assert ModuleIndex(Tied()).is_tied
    assert not ModuleIndex(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))).is_tied


def test_the_mode_is_set_as_the_module_sets_it_and_only_if_it_must_be() -> None:
    module = Frozen()
    index = ModuleIndex(module)
    index.train()
    assert (module.training, module.norm.training, module.asked) == (True, False, 1)
    index.train()
    assert module.asked == 1
    index.train(False)
    assert (module.training, module.asked) == (False, 2)


def test_a_mode_that_somebody_else_has_changed_is_set_again() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout())
    index = ModuleIndex(module)
    index.train()
    module[1].eval()
    index.train()
    assert module[1].training
    module.eval()
    index.train()
    assert all(part.training for part in module.modules())


def test_a_tied_segment_computes_with_the_one_weight_that_it_is_given() -> None:
    class Forward(Tied):
        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.second(self.first(x))
            return outputs

    index = ModuleIndex(Forward())
    weights = {name: torch.ones_like(tensor) for name, tensor in index.tensors.items()}
    x = torch.ones(1, 3)
    computed = client_pass.forward(index, weights, x, training=False, seed=0)
    torch.testing.assert_close(computed.activations, torch.full((1, 3), 13.0))
