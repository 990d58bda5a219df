"""GroupNorm in the place of BatchNorm, so that a client's part of a batch is enough."""

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flower_psl.errors import ConfigError


def to_group_norm(model: nn.Module, num_groups: int = 32) -> nn.Module:
    """Return a copy of a model with GroupNorm wherever it has BatchNorm.

    GroupNorm normalizes each example on its own. A step of split training is then that of
    centralized training, whatever the clients' batch sizes. Scale, shift, ``eps``, device,
    dtype, mode and ``requires_grad`` are carried over, running statistics are not: the
    outputs change, so convert before training.

    Parameters
    ----------
    model : nn.Module
        The model, or a BatchNorm layer itself. It stays as it is.
    num_groups : int
        Groups of a layer, at most. A layer gets the largest divisor of its number of
        channels that is not larger.

    Returns
    -------
    nn.Module
        The copy.

    Raises
    ------
    ConfigError
        If `num_groups` is less than 1, or a lazy layer does not know its channels yet.

    Notes
    -----
    Over vectors ``(N, C)`` a group of one channel has one value, which GroupNorm maps to
    the shift alone. For BatchNorm1d on such inputs take `num_groups` well below C.

    References
    ----------
    Wu and He, "Group Normalization", 2018, arXiv:1803.08494: 32 groups.
    """
    if num_groups < 1:
        raise ConfigError(
            f"num_groups={num_groups}; a layer has at least one group. Take 32, as in the paper."
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.num_features < 1:
            raise ConfigError(
                f"{name or 'the model'} ({type(module).__name__}) does not know its number of "
                "channels yet; a lazy layer learns it from its first input. Run the model once, "
                "then convert it."
            )
    twin = copy.deepcopy(model)
    if isinstance(twin, _BatchNorm):
        return _group_norm(twin, num_groups)
    made: dict[nn.Module, nn.GroupNorm] = {}  # a layer with two names stays one layer
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, _BatchNorm):
                if child not in made:
                    made[child] = _group_norm(child, num_groups)
                setattr(parent, name, made[child])
    return twin


def _group_norm(layer: _BatchNorm, num_groups: int) -> nn.GroupNorm:
    channels = layer.num_features
    groups = next(n for n in range(min(num_groups, channels), 0, -1) if channels % n == 0)
    norm = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        # The copy's own parameters: device, dtype and requires_grad come with them.
        norm.weight, norm.bias = layer.weight, layer.bias
    return norm.train(layer.training)
