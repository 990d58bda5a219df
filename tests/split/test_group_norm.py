from typing import Any

import pytest
import torch
import torchvision.models as zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flower_psl.errors import ConfigError
from flower_psl.split.group_norm import to_group_norm


def converted(layer: nn.Module, num_groups: int = 32) -> nn.GroupNorm:
    norm = to_group_norm(layer, num_groups)
    assert isinstance(norm, nn.GroupNorm)
    return norm


@settings(deadline=None)
@given(channels=st.integers(1, 200), num_groups=st.integers(1, 64))
def test_groups_are_the_largest_divisor_allowed(channels: int, num_groups: int) -> None:
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    norm = converted(nn.BatchNorm2d(channels), num_groups)
    assert norm.num_groups == max(n for n in divisors if n <= num_groups)
    assert norm.num_channels == channels


def test_every_batch_norm_is_replaced_and_the_model_stays() -> None:
    model = zoo.resnet18(num_classes=10)
    twin = to_group_norm(model)
    count = sum(isinstance(module, _BatchNorm) for module in model.modules())
    assert count == sum(isinstance(module, nn.GroupNorm) for module in twin.modules()) == 20
    assert not any(isinstance(module, _BatchNorm) for module in twin.modules())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert all(tensor.data_ptr() not in own for tensor in twin.state_dict().values())
    # Examples no longer depend on each other.
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(twin(x)[:1], twin(x[:1]), atol=1e-5)


@pytest.mark.parametrize(
    "kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]
)
def test_scale_shift_eps_dtype_mode_and_requires_grad_are_kept(kind: Any) -> None:
    layer = kind(6, eps=0.25, dtype=torch.float64).eval()
    nn.init.normal_(layer.weight)
    layer.bias.requires_grad_(False)
    norm = converted(layer)
    assert norm.eps == 0.25 and not norm.training
    assert torch.equal(norm.weight, layer.weight) and norm.weight.dtype == torch.float64
    assert norm.weight.requires_grad and not norm.bias.requires_grad


def test_without_scale_and_shift() -> None:
    assert not converted(nn.BatchNorm2d(4, affine=False)).affine


def test_meta_device() -> None:
    assert converted(nn.BatchNorm2d(4, device="meta")).weight.is_meta


def test_a_layer_with_two_names_stays_one_layer() -> None:
    norm = nn.BatchNorm1d(4)
    twin = to_group_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert isinstance(twin, nn.Sequential)
    assert twin[0] is twin[2] and isinstance(twin[0], nn.GroupNorm)


@pytest.mark.parametrize("num_groups", [0, -3])
def test_less_than_one_group_is_refused(num_groups: int) -> None:
    with pytest.raises(ConfigError, match=f"num_groups={num_groups}; .*at least one.*Take 32"):
        to_group_norm(nn.BatchNorm2d(4), num_groups)


def test_lazy_layers_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.LazyBatchNorm2d()))
    with pytest.raises(ConfigError, match=r"1\.0 \(LazyBatchNorm2d\).*Run the model once"):
        to_group_norm(model)
