"""Find the layers whose training differs between clients and a central server."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flower_psl.split.report import Finding, FindingKind, Side
from flower_psl.split.split_model import SplitModel

_MESSAGES = {
    FindingKind.BATCH_NORM: (
        "BatchNorm in the client segment normalizes over each client's own part of the batch; "
        "steps differ from centralized training, the more the smaller the parts. Set "
        "min_client_batch, or convert the model with to_group_norm."
    ),
    FindingKind.RANDOM: (
        "draws random numbers in training; a run can be repeated bit for bit, but agrees with "
        "centralized training in distribution only."
    ),
    FindingKind.BUFFER: (
        "changes its buffers in training; only BatchNorm's can be merged over clients, so "
        "training refuses this segment. Put the layer behind the cut, or turn its tracking off."
    ),
    FindingKind.FROZEN: (
        "the client segment has nothing to train; no gradients are sent back, and the "
        "activations could be computed once."
    ),
}


def find(split: SplitModel, run_client: Callable[[nn.Module], Tensor]) -> tuple[Finding, ...]:
    """Run a split once in training mode, on copies, and report what its layers do.

    Parameters
    ----------
    split : SplitModel
        The split. It stays as it is.
    run_client : callable
        Calls a client segment with a batch of inputs and returns the activations.

    Returns
    -------
    tuple of Finding
        By kind, then in the order of the modules.
    """
    client, server = copy.deepcopy(split.client).train(), copy.deepcopy(split.server).train()
    before = {name: (buffer, buffer._version) for name, buffer in client.named_buffers()}
    with torch.no_grad():
        client_random = random_modules(client, lambda: run_client(client))
        activations = run_client(client)
        server_random = random_modules(server, lambda: server(activations))
    mixing = [name for name, module in client.named_modules() if isinstance(module, _BatchNorm)]
    changed = {
        name.rpartition(".")[0]: None
        for name, buffer in client.named_buffers()
        if buffer is not before[name][0] or buffer._version > before[name][1]
    }
    frozen = not any(parameter.requires_grad for parameter in client.parameters())
    found: list[tuple[FindingKind, Side, list[str]]] = [
        (FindingKind.BATCH_NORM, "client", mixing),
        (FindingKind.RANDOM, "client", client_random),
        (FindingKind.RANDOM, "server", server_random),
        (FindingKind.BUFFER, "client", [name for name in changed if name not in mixing]),
        (FindingKind.FROZEN, "client", [""] if frozen else []),
    ]
    return tuple(
        Finding(kind=kind, segment=segment, module=name, message=_MESSAGES[kind])
        for kind, segment, names in found
        for name in names
    )


def random_modules(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the innermost modules that draw from torch's CPU generator in training.

    What a layer does is observed, not guessed from its class: a Dropout with ``p=0`` is
    not random, a layer that calls ``torch.nn.functional.dropout`` is.

    Parameters
    ----------
    model : nn.Module
        A model on the CPU. Afterwards the modules found in it are in evaluation mode.
    run : callable
        Calls the model once.
    """
    found: list[str] = []
    # A module that draws itself, and around one that draws, shows only when the inner one
    # is quiet. Each turn quiets at least one module, so this ends.
    while new := [name for name in _draws(model, run) if name not in found]:
        found += new
        for name in filter(None, new):
            model.get_submodule(name).eval()
    return found


def _draws(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the modules that moved the generator while none inside of them did."""
    drawn: list[str] = []
    entered: list[tuple[Tensor, int]] = []

    def enter(module: nn.Module, args: object) -> None:
        entered.append((torch.get_rng_state(), len(drawn)))

    def leave(name: str, module: nn.Module, args: object, output: object) -> None:
        state, drawn_before = entered.pop()
        if len(drawn) == drawn_before and not torch.equal(state, torch.get_rng_state()):
            drawn.append(name)

    hooks = [
        hook
        for name, module in model.named_modules()
        for hook in (
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(partial(leave, name)),
        )
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(drawn))
