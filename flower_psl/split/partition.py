"""Divide a traced graph at one layer."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import Argument

from flower_psl.errors import CutError


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The nodes of the two sides, each in the graph's order.

    Attributes
    ----------
    client : tuple of Node
        From the inputs to the cut layer.
    server : tuple of Node
        From the activations on, without the cut layer's node and the output node.
    crossing : Node
        The cut layer's call.
    output : Argument
        The model's output: a server node, or such nodes in tuples, lists and dicts.
    """

    client: tuple[Node, ...]
    server: tuple[Node, ...]
    crossing: Node
    output: Argument


def partition(graph: Graph, model: nn.Module, at: str) -> Partition:
    """Divide the nodes of a graph into what `at` needs and what is left.

    Parameters
    ----------
    graph : torch.fx.Graph
        A trace of `model` down to `at`.
    model : nn.Module
        The model, for error messages.
    at : str
        Name of the cut layer.

    Raises
    ------
    CutError
        If `at` is not called exactly once, does not give one tensor, or is not the only
        value that the server side needs, or if nothing is left for the server.
    """
    crossing = _only_call(graph, model, at)
    _refuse_tuple(crossing, model, at)
    behind = _closure([crossing], lambda node: node.users) - {crossing}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    front = _closure([crossing, *inputs], lambda node: node.all_input_nodes)
    output = graph.output_node()
    needed = _closure([output, *behind], lambda node: node.all_input_nodes)
    # What nobody needs is there for its effect: an assertion on the inputs, an in-place
    # change. It stays with the values that it is about.
    for node in graph.nodes:
        if node not in needed and front & set(node.all_input_nodes):
            front |= _closure([node], lambda node: node.all_input_nodes)
    # Reading a parameter is no computation: each side does that for itself.
    reads = {node for node in graph.nodes if node.op == "get_attr"}
    server = {node for node in graph.nodes if node.op != "output"} - front - reads
    used = {source for node in [*server, output] for source in node.all_input_nodes}
    if crossers := used & front - reads - {crossing}:
        names = [_describe(node) for node in graph.nodes if node in crossers | {crossing}]
        raise CutError(
            f"the cut at {at!r} is crossed by {len(names)} values: {', '.join(names)}; only the "
            "output of the cut layer may cross it. Cut at a block's boundary (behind a residual "
            "sum, not inside of it), or give two hand-written modules to SplitModel."
        )
    if not server:
        raise CutError(
            f"behind {at!r} nothing is left to compute; the server segment needs at least one "
            "layer. Cut earlier."
        )
    server |= used & reads
    return Partition(
        client=tuple(node for node in graph.nodes if node in front),
        server=tuple(node for node in graph.nodes if node in server),
        crossing=crossing,
        output=output.args[0],
    )


def _closure(start: Iterable[Node], step: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += step(node)
    return found


def _only_call(graph: Graph, model: nn.Module, at: str) -> Node:
    calls: list[Node] = [
        node for node in graph.nodes if node.op == "call_module" and node.target == at
    ]
    if len(calls) == 1:
        return calls[0]
    kind = type(model.get_submodule(at)).__name__
    remedy = (
        "Cut at a layer that is called once"
        if calls
        else "Name a layer that forward calls (a ModuleList only holds layers)"
    )
    raise CutError(
        f"forward calls {at!r} ({kind}) {len(calls)} times; the cut layer is called exactly "
        f"once, in training and in evaluation mode. {remedy}, or give two hand-written modules "
        "to SplitModel."
    )


def _refuse_tuple(crossing: Node, model: nn.Module, at: str) -> None:
    layer = model.get_submodule(at)
    unpacked = bool(crossing.users) and all(
        user.target is operator.getitem and isinstance(user.args[1], (int, str))
        for user in crossing.users
    )
    if unpacked or isinstance(layer, (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)):
        raise CutError(
            f"{at!r} ({type(layer).__name__}) returns several values; exactly one tensor may "
            "cross the cut. Wrap the layer in a module that returns one tensor, or cut at a "
            "layer that does."
        )


def _describe(node: Node) -> str:
    match node.op:
        case "call_module":
            return f"the output of {node.target!r}"
        case "placeholder":
            return f"the input {node.target!r}"
        case "get_attr":
            return str(node.target)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    sources = ", ".join(_describe(source) for source in node.all_input_nodes)
    return f"{name}({sources})"
