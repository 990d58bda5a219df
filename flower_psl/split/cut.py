"""Cut a whole model in two at the output of one of its layers."""

from difflib import get_close_matches
from inspect import Parameter, Signature

from torch import nn

from flower_psl.errors import CutError
from flower_psl.split.partition import partition
from flower_psl.split.segment import ACTIVATIONS, Segment, program
from flower_psl.split.share import share
from flower_psl.split.split_model import SplitModel
from flower_psl.split.trace import required_inputs, trace

_SERVER_SIGNATURE = Signature([Parameter(ACTIVATIONS, Parameter.POSITIONAL_OR_KEYWORD)])


def cut(model: nn.Module, at: str) -> SplitModel:
    """Cut a model at the output of the layer `at`.

    The forwards of the modules around `at` are traced with ``torch.fx``; all other
    modules are called as they are. The segments share the model's modules, parameters and
    buffers and keep their names: their ``state_dict`` keys are the model's, disjoint, and
    together complete. What ``forward`` never uses goes to the server. Outputs are those
    of the uncut model, bit for bit, in training and in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        The whole model. It stays as it is, and may be on the meta device.
    at : str
        Name of the cut layer as in ``model.named_modules()``: the last module of the
        client segment, ``"layer1"`` for example. Its output is one tensor.

    Returns
    -------
    SplitModel
        The two segments. The client takes the model's required inputs (arguments with a
        default keep it), the server the activations.

    Raises
    ------
    CutError
        If `at` names no submodule; is not called exactly once; is not the only thing that
        the server side needs; shares tensors with the server side; leaves nothing
        for the server; or if a forward around it cannot be traced.

    Notes
    -----
    If the forwards around the cut read ``self.training``, a segment's own mode decides,
    not that of a module between the root and the cut layer.

    Examples
    --------
    >>> split = cut(torchvision.models.resnet18(num_classes=10), at="layer1")
    """
    _check_name(model, at)
    parts = {
        training: partition(trace(model, at, training=training), model, at)
        for training in (True, False)
    }
    client = Segment(
        required_inputs(model),
        {mode: program(part.client, result=part.crossing) for mode, part in parts.items()},
    )
    server = Segment(
        _SERVER_SIGNATURE,
        {
            mode: program(part.server, result=part.output, entry=part.crossing)
            for mode, part in parts.items()
        },
    )
    share(model, client, server, parts.values())
    split = SplitModel(client, server, at=at, order=model.state_dict())
    if lost := [key for key in model.state_dict() if key not in split.state_dict()]:
        raise CutError(
            f"the keys {lost} of the model's state_dict would be lost: a module around "
            f"{at!r} writes them itself. Give two hand-written modules to SplitModel."
        )
    return split


def _check_name(model: nn.Module, at: str) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if at in names:
        return
    top = [name for name, _ in model.named_children()]
    near = get_close_matches(at, names)
    raise CutError(
        f"at={at!r} names no submodule of {type(model).__name__}; the cut layer is one of "
        f"model.named_modules(), other than the model itself. "
        f"{f'Did you mean {near}? ' if near else ''}The top level has {top}."
    )
