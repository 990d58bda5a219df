"""Trace the forwards that a cut goes through, and no other."""

import inspect
import random
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Tracer

from flower_psl.errors import CutError
from flower_psl.split.randomness import seeded

HAND_WRITTEN = "cut elsewhere, or give two hand-written modules to SplitModel"
# The generators are the process's, so another thread may draw from them during a trace. A forward
# that does draws in every one.
_TRACES = 3


def ancestors(path: str) -> list[str]:
    """Return the names of the modules around `path`, from the root (``""``) inwards."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def required_inputs(model: nn.Module) -> Signature:
    """Return the arguments that a model's ``forward`` cannot do without.

    Arguments with a default keep it, and ``*args`` and ``**kwargs`` stay empty: in a
    trace, ``mask is None`` has to have one answer.
    """
    return Signature(
        [
            Parameter(parameter.name, parameter.kind)
            for parameter in inspect.signature(model.forward).parameters.values()
            if parameter.default is Parameter.empty
            and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]
    )


def trace(model: nn.Module, at: str, *, training: bool) -> Graph:
    """Trace `model` down to the module `at`, in training or in evaluation mode.

    Only the forwards of the modules around `at` are traced; every other module is one
    node. So layers behave as they always do, and just those few forwards have to be
    traceable, with ``self.training`` as given.

    Parameters
    ----------
    model : nn.Module
        The whole model. Its modes, and attributes that a forward sets, are put back.
    at : str
        Name of a module in it.
    training : bool
        The mode that the traced forwards see.

    Returns
    -------
    torch.fx.Graph
        One graph from the model's required inputs to its outputs.

    Raises
    ------
    CutError
        If a forward around `at` cannot be traced, or a trace of it would freeze a random
        draw or a tensor that is made anew in every call.
    """
    opened = [model.get_submodule(path) for path in ancestors(at)]
    attributes = [dict(vars(module)) for module in opened]
    # fx patches nn.Module in the whole process while it traces. `seeded` holds the lock
    # under which segments run, so none of them runs into the patch.
    with seeded(0):
        try:
            for module in opened:
                module.training = training
            return _CutTracer(at).traced(model)
        finally:
            for module, before in zip(opened, attributes, strict=True):
                vars(module).clear()
                vars(module).update(before)


class _CutTracer(Tracer):
    """A tracer that looks into the modules around the cut only."""

    # Else a buffer that is used before it meets an input would become a constant.
    proxy_buffer_attributes = True

    def __init__(self, at: str) -> None:
        super().__init__()
        self._opened = set(ancestors(at))

    def traced(self, model: nn.Module) -> Graph:
        for _ in range(_TRACES):
            before = _generator_states()
            graph = self._traced_once(model)
            if _generator_states() == before:
                return graph
        raise CutError(
            f"the forwards of {type(model).__name__} around the cut draw random numbers "
            "outside of any layer; a trace would freeze them. Draw them in a submodule that "
            f"the cut does not go through, {HAND_WRITTEN}."
        )

    def _traced_once(self, model: nn.Module) -> Graph:
        try:
            return super().trace(model)
        except CutError:
            raise
        except Exception as error:  # whatever user code raises when it meets a proxy
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise CutError(
                f"{self._where(model)} cannot be traced ({reason}); the forwards around the cut "
                "must not branch or loop on values that are known only when they run. Move that "
                f"code into a submodule that the cut does not go through, {HAND_WRITTEN}."
            ) from error

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._opened

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        kinds = {name: p.kind for name, p in required_inputs(self.root).parameters.items()}
        by_keyword = [name for name, kind in kinds.items() if kind is Parameter.KEYWORD_ONLY]

        # The root is called as a module, not by its forward, so that its hooks are traced.
        def call(*proxies: Any) -> Any:
            values = dict(zip(kinds, proxies, strict=True))
            keywords = {name: values.pop(name) for name in by_keyword}
            return self.root(*values.values(), **keywords)

        return call, [self.create_proxy("placeholder", name, (), {}) for name in kinds]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not self._is_known(a):
            raise CutError(
                f"{self._where(self.root)} makes a tensor of shape {tuple(a.shape)} in its "
                "forward; a trace would freeze its values. Register it as a buffer "
                "(persistent=False keeps it out of the state_dict), or make it in a submodule "
                "that the cut does not go through."
            )
        return super().create_arg(a)

    def _is_known(self, tensor: torch.Tensor) -> bool:
        registered = [*self.root.parameters(), *self.root.buffers()]
        return tensor in self.tensor_attrs or any(tensor is known for known in registered)

    def _where(self, model: nn.Module) -> str:
        # The stack is left as it was when the innermost forward failed.
        path, kind = next(reversed(self.module_stack.values()), ("", type(model)))
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        return f"module {path!r} ({name})" if path else f"the model ({name})"


def _generator_states() -> tuple[object, bytes]:
    return random.getstate(), bytes(torch.get_rng_state().tolist())
