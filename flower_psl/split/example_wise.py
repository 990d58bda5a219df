"""Whether one pass over many examples computes what passes over parts of them would."""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flower_psl.errors import ConfigError
from flower_psl.split.findings import random_modules


def check_example_wise(
    segment: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, *, name: str, remedy: str
) -> None:
    """Refuse a segment whose output for an example is not that example's own in training.

    What layers do is observed, not guessed from their classes: on copies, on the CPU.

    Parameters
    ----------
    segment : nn.Module
        The segment; it may be on the meta device.
    weights : mapping of str to Tensor
        Its parameters and buffers, as `ModuleIndex.tensors` names them.
    inputs : Tensor
        ``(n, ...)``: a batch of examples that differ.
    name : str
        What the segment is called in the error, such as ``"client segment"``.
    remedy : str
        What to do about it, such as ``"Leave out fuse_clients"``.

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
        for layer in random_modules(segment, partial(run, inputs)):
            raise _refusal(segment, layer, f"of the {name} draws random numbers", remedy)
        among_others = _first_outputs(segment, partial(run, inputs))
        among_its_like = _first_outputs(segment, partial(run, inputs[[0] * len(inputs)]))
    # In the order in which the modules were done, so that the innermost comes first. The
    # segment itself, at the end, decides: inside of it examples need not come first.
    changed = [
        layer
        for layer, output in among_others.items()
        if not torch.equal(output, among_its_like.get(layer, output))
    ]
    if changed and changed[-1] == "":
        what = f"of the {name} mixes the examples of a batch"
        raise _refusal(segment, changed[0], what, remedy)


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


def _refusal(segment: nn.Module, layer: str, what: str, remedy: str) -> ConfigError:
    kind = type(segment.get_submodule(layer)).__name__
    return ConfigError(
        f"layer {layer!r} ({kind}) {what} in training; parts of a batch that are computed "
        "together or one by one, as it suits, need layers that treat every example alone and "
        f"alike. {remedy}."
    )
