"""Whether one pass over many examples computes what passes over parts of them would."""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flower_psl.errors import ConfigError
from flower_psl.split.findings import random_modules


def check_example_wise(segment: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> None:
    """Refuse a segment whose output for an example is not that example's own in training.

    What layers do is observed, not guessed from their classes: on copies, on the CPU.

    Parameters
    ----------
    segment : nn.Module
        The client segment; it may be on the meta device.
    weights : mapping of str to Tensor
        Its parameters and buffers, as `segment_tensors` names them.
    inputs : Tensor
        ``(n, ...)``: a batch of examples that differ.

    Raises
    ------
    ConfigError
        If a layer draws random numbers, or what the segment makes of the first example
        changes with the other examples.
    """
    segment = copy.deepcopy(segment).train()

    def run(inputs: Tensor) -> None:
        # A layer may write into its buffers, so each run gets its own.
        copies = {name: tensor.cpu().clone() for name, tensor in weights.items()}
        functional_call(segment, copies, (inputs.cpu(),))

    with torch.no_grad():
        for name in random_modules(segment, partial(run, inputs)):
            raise _refusal(segment, name, "draws random numbers")
        among_others = _first_outputs(segment, partial(run, inputs))
        among_its_like = _first_outputs(segment, partial(run, inputs[[0] * len(inputs)]))
    # In the order in which the modules were done, so that the innermost comes first. The
    # segment itself, at the end, decides: inside of it examples need not come first.
    changed = [
        name
        for name, output in among_others.items()
        if not torch.equal(output, among_its_like.get(name, output))
    ]
    if changed and changed[-1] == "":
        raise _refusal(segment, changed[0], "mixes the examples of a batch")


def _first_outputs(segment: nn.Module, run: Callable[[], None]) -> dict[str, Tensor]:
    """Return what each module made of the first example, the segment itself last."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim():
            # NaN, which equals nothing, is the server's to find: it names the client.
            outputs[name] = output[0].nan_to_num()

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in segment.named_modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _refusal(segment: nn.Module, name: str, what: str) -> ConfigError:
    kind = type(segment.get_submodule(name)).__name__
    return ConfigError(
        f"layer {name!r} ({kind}) of the client segment {what} in training; one pass for all "
        "clients needs layers that treat every example alone and alike. Leave out "
        "fuse_clients, replace the layer, or put it behind the cut."
    )
