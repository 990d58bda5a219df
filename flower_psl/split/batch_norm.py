"""BatchNorm in the client segment: moments go up, running statistics are merged once.

Each client normalizes over its own part of the global batch. The running statistics,
however, can be those of the global batch: a client reports the moments of its part, and
the server merges them before *one* momentum update a step.

Moments travel as tensors by name. A layer ``L`` that ran ``n`` times in one forward
pass over ``C`` channels has

- ``L.mean`` and ``L.var``: ``(n, C)`` float64, the variance divided by the count;
- ``L.count``: ``(n,)`` int64, the positions that each channel was averaged over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flower_psl.errors import ProtocolError

Moments = dict[str, Tensor]

# What one client says of a layer: how often it ran in a pass, and over how many positions.
# Sums over all clients stay within 64 bits.
_MOST_CALLS = 1000
_MOST_POSITIONS = 2**40
# What keeps the sum of variances and squares below the largest number of its dtype.
_HEADROOM = 8


def batch_norm_layers(segment: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers of a segment that keep running statistics, by name."""
    return {
        name: module
        for name, module in segment.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def running_statistics(segment: nn.Module) -> set[str]:
    """Return the names of the buffers in which BatchNorm keeps its running statistics."""
    return {
        f"{layer}.{part}" if layer else part
        for layer in batch_norm_layers(segment)
        for part in ("running_mean", "running_var", "num_batches_tracked")
    }


@contextmanager
def record_moments(segment: nn.Module) -> Iterator[Moments]:
    """Collect the moments of every BatchNorm input while the block runs.

    The mapping is filled when the block ends.
    """
    calls: dict[str, list[tuple[Tensor, Tensor, int]]] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()  # (N, C, ...)
        if not layer.training:
            return
        over = [dim for dim in range(x.dim()) if dim != 1]
        var, mean = torch.var_mean(x, dim=over, correction=0)
        calls.setdefault(name, []).append((mean, var, x.numel() // x.shape[1]))

    hooks = [
        layer.register_forward_pre_hook(partial(record, name))
        for name, layer in batch_norm_layers(segment).items()
    ]
    moments: Moments = {}
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()
    for name, parts in calls.items():
        moments[f"{name}.mean"] = torch.stack([mean for mean, _, _ in parts]).double()
        moments[f"{name}.var"] = torch.stack([var for _, var, _ in parts]).double()
        moments[f"{name}.count"] = torch.tensor([count for _, _, count in parts])


def merge_moments(parts: Sequence[Mapping[str, Tensor]], name: str) -> tuple[Tensor, ...]:
    """Merge the clients' moments of one layer into those of the global batch.

    With weights ``w_k`` = positions of client k / all positions, the mean is
    ``sum w_k mean_k`` and the variance ``sum w_k (var_k + mean_k^2) - mean^2``.

    Parameters
    ----------
    parts : sequence of mappings
        The clients' moments.
    name : str
        The layer.

    Returns
    -------
    tuple of Tensor
        ``mean (n, C)``, ``var (n, C)`` (divided by the count) and ``count (n,)``.
    """
    mean_k = torch.stack([part[f"{name}.mean"] for part in parts])  # (K, n, C)
    var_k = torch.stack([part[f"{name}.var"] for part in parts])  # (K, n, C)
    count_k = torch.stack([part[f"{name}.count"] for part in parts])  # (K, n)
    count = count_k.sum(0)
    # As doubles, because the quotient of two int64 tensors is a float32.
    weight = (count_k.double() / count).unsqueeze(-1)  # (K, n, 1)
    mean = (weight * mean_k).sum(0)
    # Written as the spread around the merged mean, which is the same number as
    # sum w (var + mean^2) - mean^2 without its cancellation.
    var = (weight * (var_k + (mean_k - mean) ** 2)).sum(0)
    return mean, var, count


@torch.no_grad()
def update_running_statistics(segment: nn.Module, parts: Sequence[Mapping[str, Tensor]]) -> None:
    """Advance a segment's running statistics by one step of the global batch.

    Does what ``torch.nn.BatchNorm2d`` does in one forward pass over the global batch:
    one momentum update with the unbiased variance, ``num_batches_tracked`` plus one.

    Parameters
    ----------
    segment : nn.Module
        The server's copy of the client segment; its buffers change.
    parts : sequence of mappings
        The moments that each client of the step reported. A layer that a client's forward
        pass did not reach takes its statistics from the others.

    Raises
    ------
    ProtocolError
        If a layer did not run equally often on the clients that it ran on.
    """
    reported = set().union(*parts)
    for name, layer in batch_norm_layers(segment).items():
        if f"{name}.mean" not in reported:
            continue  # a layer that this forward pass did not reach
        running_mean, running_var = layer.running_mean, layer.running_var
        if running_mean is None or running_var is None or layer.num_batches_tracked is None:
            continue  # unreachable for batch_norm_layers; tells the type checker so
        reports = [part for part in parts if f"{name}.mean" in part]
        calls = sorted({len(part[f"{name}.count"]) for part in reports})
        if len(calls) > 1:
            raise ProtocolError(
                f"BatchNorm {name!r} ran {calls} times in the forward passes of one step; it "
                "must run equally often on every client. Put it behind the cut, or replace it "
                "by to_group_norm(model)."
            )
        mean, var, count = merge_moments(reports, name)
        for call in range(len(count)):
            layer.num_batches_tracked += 1
            momentum = (
                1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            )
            unbiased = var[call] * count[call] / (count[call] - 1).clamp(min=1)
            running_mean.lerp_(mean[call].to(running_mean), momentum)
            running_var.lerp_(unbiased.to(running_var), momentum)


def check_moments(segment: nn.Module, moments: Mapping[str, Tensor], where: object) -> None:
    """Refuse moments that do not belong to a segment's BatchNorm layers.

    Parameters
    ----------
    segment : nn.Module
        The server's copy of the client segment.
    moments : mapping
        What one client reported.
    where : object
        Client, round and step, as text for the message.

    Raises
    ------
    ProtocolError
        If a name, shape or count is not one that the segment can produce, or a value is
        not finite or would not be in the layer's running statistics.
    """
    if not moments:
        return
    layers = batch_norm_layers(segment)
    expected = {f"{name}.{part}" for name in layers for part in ("mean", "var", "count")}
    if unknown := sorted(set(moments) - expected):
        raise ProtocolError(
            f"{where}: BatchNorm moments for {unknown}; the client segment has the layers "
            f"{sorted(layers)}. Build the same model on the device and on the server."
        )
    for name, layer in layers.items():
        present = [moments.get(f"{name}.{part}") for part in ("mean", "var", "count")]
        if all(part is None for part in present):
            continue
        mean, var, count = present
        if (
            mean is None
            or var is None
            or count is None
            or (mean.dtype, var.dtype, count.dtype) != (torch.float64, torch.float64, torch.int64)
            or count.dim() != 1
            or mean.shape != (len(count), layer.num_features)
            or var.shape != mean.shape
            or len(count) > _MOST_CALLS
            or not bool(((count >= 1) & (count <= _MOST_POSITIONS)).all())
            or not bool(((var >= 0) & (var + mean.square() <= _largest(layer))).all())
        ):
            raise ProtocolError(
                f"{where}: the moments of BatchNorm {name!r} have (mean, var, count) = "
                f"{tuple(map(_kind, present))}; they must be float64 of shape "
                f"(calls, {layer.num_features}), with var >= 0 and var + mean^2 within the range "
                f"of the layer's dtype, and int64 of shape (calls,), 1 to {_MOST_POSITIONS}, for "
                f"at most {_MOST_CALLS} calls. Look at this client's inputs, or leave it out."
            )


def _largest(layer: _BatchNorm) -> float:
    statistics = layer.running_var
    dtype = torch.get_default_dtype() if statistics is None else statistics.dtype
    return torch.finfo(dtype).max / _HEADROOM


def _kind(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
