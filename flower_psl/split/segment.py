"""One side of a cut model: the original layers, and the order in which they are called."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Signature
from operator import attrgetter
from typing import Any

from torch import nn
from torch.fx import Node
from torch.fx.node import Argument, map_arg

ACTIVATIONS = "activations"


@dataclass(frozen=True, slots=True)
class Value:
    """A reference to what an earlier step computed."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a traced graph, as plain data.

    Attributes
    ----------
    name : str
        Name of the value that the step computes.
    op, target, args, kwargs
        As in ``torch.fx.Node``, with `Value` in the place of nodes.
    spent : tuple of str
        Values that no later step reads; they are dropped, so that evaluation holds no
        more memory than the uncut model.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    spent: tuple[str, ...]


def program(
    nodes: Iterable[Node], *, result: Argument, entry: Node | None = None
) -> tuple[Step, ...]:
    """Turn nodes of a graph, in their order, into steps.

    Parameters
    ----------
    nodes : iterable of Node
        What to run, without an output node.
    result : Argument
        What to return: a node, or nodes in tuples, lists and dicts.
    entry : Node, optional
        A node whose value comes from outside, as the argument `ACTIVATIONS`.

    Returns
    -------
    tuple of Step
        The last one returns the result.
    """
    needed: set[str] = set()

    def step(name: str, op: str, target: Any, args: Any, kwargs: Any) -> Step:
        reads: dict[str, None] = {}

        def refer(node: Node) -> Any:
            reads[node.name] = None
            return Value(node.name)

        args, kwargs = _plain(map_arg(args, refer)), _plain(map_arg(kwargs, refer))
        # Steps are made from the last to the first, so what is not needed yet is spent.
        spent = tuple(read for read in reads if read not in needed)
        needed.update(reads)
        return Step(name, op, target, args, kwargs, spent)

    steps = [step("output", "output", "output", (result,), {})]
    steps += [
        step(node.name, node.op, node.target, node.args, node.kwargs)
        for node in reversed(list(nodes))
    ]
    if entry is not None:
        steps.append(step(entry.name, "placeholder", ACTIVATIONS, (), {}))
    return tuple(reversed(steps))


def _plain(value: Any, values: Mapping[str, Any] | None = None) -> Any:
    """Rebuild nested arguments from Python's own containers, with `values` filled in."""
    match value:
        case Value() if values is not None:
            return values[value.name]
        case tuple():
            return tuple(_plain(item, values) for item in value)
        case list():
            return [_plain(item, values) for item in value]
        case dict():
            return {key: _plain(item, values) for key, item in value.items()}
        case slice():
            return slice(*(_plain(part, values) for part in (value.start, value.stop, value.step)))
    return value


class Segment(nn.Module):
    """One side of a cut model.

    It holds the original modules and parameters (shared, not copied) under their original
    names, and calls them as the original ``forward`` did. ``self.training`` chooses
    between what ``forward`` did in training and in evaluation mode.

    Its code is data, not a generated function: a segment can be pickled, deep-copied and
    given to ``torch.func.functional_call`` like any other module.

    Parameters
    ----------
    signature : inspect.Signature
        The arguments that the segment takes.
    programs : mapping of bool to sequence of Step
        What to do in training (``True``) and in evaluation mode (``False``).
    """

    def __init__(self, signature: Signature, programs: Mapping[bool, Sequence[Step]]) -> None:
        super().__init__()
        self._signature = signature
        self._programs = dict(programs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the segment's output.

        Raises
        ------
        TypeError
            If the arguments do not fit the signature.
        """
        arguments = self._signature.bind(*args, **kwargs).arguments
        values: dict[str, Any] = {}
        for step in self._programs[self.training]:
            values[step.name] = self._run(step, values, arguments)
            for name in step.spent:
                del values[name]
        return values["output"]

    def _run(self, step: Step, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        args: tuple[Any, ...] = _plain(step.args, values)
        kwargs: dict[str, Any] = _plain(step.kwargs, values)
        match step.op:
            case "placeholder":
                return arguments[step.target]
            case "get_attr":
                return attrgetter(step.target)(self)
            case "call_module":
                return attrgetter(step.target)(self)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], step.target)(*args[1:], **kwargs)
            case "call_function":
                return step.target(*args, **kwargs)
            case _:  # "output"
                return args[0]
