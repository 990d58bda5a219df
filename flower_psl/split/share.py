"""Give every module and tensor of a model to the segment that uses it."""

from collections.abc import Callable, Collection, Iterable
from operator import attrgetter

from torch import Tensor, nn
from torch.fx import Node

from flower_psl.errors import CutError
from flower_psl.split.partition import Partition
from flower_psl.split.segment import Segment
from flower_psl.split.trace import ancestors


def share(
    model: nn.Module, client: Segment, server: Segment, parts: Collection[Partition]
) -> None:
    """Register a model's modules and tensors in two segments, under their names.

    Nothing is copied. What neither segment uses goes to the server, so that the two
    state dicts are together complete.

    Parameters
    ----------
    model : nn.Module
        The whole model.
    client, server : Segment
        The segments, without modules; they are filled.
    parts : collection of Partition
        Their nodes, in training and in evaluation mode.

    Raises
    ------
    CutError
        If both sides use a module or a parameter.
    """
    client_nodes = [node for part in parts for node in part.client]
    server_nodes = [node for part in parts for node in part.server]
    nodes = [*client_nodes, *server_nodes]
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    # A module whose parts are used, but not the module itself, is opened: its parts may go
    # to different sides.
    opened = {
        path
        for target in _targets(nodes)
        for path in ancestors(target)
        if called.isdisjoint([*ancestors(path), path])
    }

    def units(nodes: Iterable[Node]) -> set[str]:
        return {
            next(path for path in [*ancestors(target), target] if path not in opened)
            for target in _targets(nodes)
        }

    if both := sorted(units(client_nodes) & units(server_nodes)):
        raise CutError(
            f"{both} are used on both sides of the cut; a module or a parameter belongs to one "
            "segment. Cut where all its uses are on the same side."
        )
    # By identity, because a module may have several names.
    owned = {id(attrgetter(path)(model)) for path in units(client_nodes)}
    _fill(client, model, "", opened, lambda item: id(item) in owned)
    _fill(server, model, "", opened, lambda item: id(item) not in owned)


def _targets(nodes: Iterable[Node]) -> set[str]:
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def _fill(
    segment: nn.Module,
    model: nn.Module,
    path: str,
    opened: Collection[str],
    keeps: Callable[[object], bool],
) -> bool:
    """Fill a segment with what it keeps of a model, and say whether that is anything."""
    segment.training = model.training
    kept = False
    for name, parameter in model._parameters.items():
        if parameter is not None and keeps(parameter):
            segment.register_parameter(name, parameter)
            kept = True
    for name, buffer in model._buffers.items():
        if buffer is not None and keeps(buffer):
            persistent = name not in model._non_persistent_buffers_set
            segment.register_buffer(name, buffer, persistent=persistent)
            kept = True
    for name, value in vars(model).items():
        if isinstance(value, Tensor) and keeps(value):
            setattr(segment, name, value)
            kept = True
    for name, child in model._modules.items():
        if child is None:
            continue
        inner = f"{path}.{name}" if path else name
        if inner not in opened:
            if keeps(child):
                segment.add_module(name, child)
                kept = True
            continue
        container = nn.Module()
        if _fill(container, child, inner, opened, keeps):
            segment.add_module(name, container)
            kept = True
    return kept
