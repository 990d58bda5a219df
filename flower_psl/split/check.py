"""Check, before any device is involved, that a split model computes what the whole one does."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_psl.errors import ConfigError, CutError
from flower_psl.split import client_pass, server_pass
from flower_psl.split.client_pass import Inputs
from flower_psl.split.cut import cut
from flower_psl.split.device_memory import measure_device_memory
from flower_psl.split.findings import find, random_modules
from flower_psl.split.module_index import ModuleIndex
from flower_psl.split.randomness import seeded
from flower_psl.split.report import Finding, FindingKind, SplitReport
from flower_psl.split.server_pass import LossFn, check_loss_fn
from flower_psl.split.split_model import SplitModel
from flower_psl.split.training_flops import count_training_flops

__all__ = ["Finding", "FindingKind", "SplitReport", "check_split"]

OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]

_SEED = 0


def _default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def check_split(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    at: str | Callable[[nn.Module], SplitModel],
    loss_fn: LossFn,
    num_clients: int = 4,
    optimizer_fn: OptimizerFn = _default_optimizer,
) -> SplitReport:
    """Compare one step of split training with one step of centralized training.

    One batch is dealt to clients that are played in this process. Loss, gradients and the
    weights after one step of one optimizer over the whole model are compared with those of
    the uncut model, all in float64, on copies, on the CPU.

    Layers for which the two cannot agree are held in evaluation mode in the comparison:
    BatchNorm and other layers with changing buffers in the client segment, and random
    layers. The report names them and says what they will do in training.

    Parameters
    ----------
    model : nn.Module
        The whole model. It stays as it is.
    inputs : Tensor, tuple or dict of Tensor
        A batch: one input, or several by position or by name; examples along the first
        dimension.
    labels : Tensor
        ``(n, ...)``.
    at : str or callable
        Name of the cut layer, or for hand-written segments a function that takes a copy
        of the model and returns the `SplitModel`.
    loss_fn : callable
        ``loss_fn(outputs, labels)``, a scalar.
    num_clients : int
        How many clients share the batch, as evenly as possible.
    optimizer_fn : callable
        Makes an optimizer from parameters. SGD with momentum unless given.

    Returns
    -------
    SplitReport
        ``report.passed`` says whether they agree; ``print(report)`` shows all of it.

    Raises
    ------
    ConfigError
        If an argument breaks a rule above, or `loss_fn` has parameters.
    CutError
        If the model cannot be cut at `at`.
    """
    check_loss_fn(loss_fn)
    _check_batch(model, inputs, labels, num_clients)
    reference = copy.deepcopy(model).cpu()
    inputs, labels = _map(Tensor.cpu, inputs), labels.cpu()
    split = _split(reference, at)
    with torch.no_grad():
        activations = _call(split.eval().client, _take(inputs, slice(1)))
    memory = measure_device_memory(split.client, lambda client: _call(client, inputs), len(labels))

    for module in (reference, split.client, split.server):
        module.double().train()
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).cpu().double()
    inputs, labels = _map(_double, inputs), _double(labels)

    findings = find(split, lambda client: _call(client, inputs))
    held = _hold(reference, split, inputs, findings)
    loss = _split_step(split, inputs, labels, loss_fn, num_clients)
    expected = _central_step(reference, inputs, labels, loss_fn)
    gradients = _difference(_gradients(split), _gradients(reference))
    for whole in (split, reference):
        optimizer_fn(list(whole.parameters())).step()
    client_flops, server_flops = _training_flops(split, inputs, labels, loss_fn)
    return SplitReport(
        loss_difference=_difference({"loss": loss}, {"loss": expected}),
        gradient_difference=gradients,
        weight_difference=_difference(
            dict(split.named_parameters()), dict(reference.named_parameters())
        ),
        activation_shape=tuple(activations.shape[1:]),
        activation_bytes_per_example=activations.nbytes,
        memory=memory,
        client_parameters=sum(p.numel() for p in split.client.parameters()),
        server_parameters=sum(p.numel() for p in split.server.parameters()),
        client_flops_per_example=client_flops,
        server_flops_per_example=server_flops,
        held_in_evaluation=held,
        findings=findings,
    )


def _check_batch(model: nn.Module, inputs: Inputs, labels: Tensor, num_clients: int) -> None:
    tensors = {"labels": labels}
    match inputs:
        case tuple():
            tensors |= {f"inputs[{i}]": tensor for i, tensor in enumerate(inputs)}
        case dict():
            tensors |= {f"inputs[{name!r}]": tensor for name, tensor in inputs.items()}
        case _:
            tensors["inputs"] = inputs
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dim() == 0 or len(tensor) != len(labels):
            shown = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ConfigError(
                f"{name} is {shown}; inputs and labels are tensors (inputs also a tuple or a "
                "dict of them) with one entry for each of the same examples along the first "
                "dimension. Pass one batch as the data loader gives it."
            )
    if not 1 <= num_clients <= len(labels):
        raise ConfigError(
            f"num_clients={num_clients} for a batch of {len(labels)}; every client gets at least "
            "one example. Take fewer clients, or a larger batch."
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ConfigError(
            "the model is on the meta device; a check computes with its weights. Build it on "
            "the CPU."
        )


def _split(model: nn.Module, at: str | Callable[[nn.Module], SplitModel]) -> SplitModel:
    twin = copy.deepcopy(model)
    split = cut(twin, at) if isinstance(at, str) else at(twin)
    if not isinstance(split, SplitModel):
        raise ConfigError(
            f"at returned a {type(split).__name__}; it is the name of a layer, or a function "
            "from a model to a SplitModel."
        )
    if different := sorted(set(split.state_dict()) ^ set(model.state_dict())):
        raise ConfigError(
            f"the split and the model differ in the state_dict keys {different}; together, the "
            "segments have the model's keys. Name their layers as the model does."
        )
    return split


def _hold(
    reference: nn.Module, split: SplitModel, inputs: Inputs, findings: Iterable[Finding]
) -> tuple[str, ...]:
    """Put what cannot agree into evaluation mode on both sides, and name it."""
    twin = copy.deepcopy(reference)
    random = random_modules(twin, lambda: _call(twin, inputs))
    trees = {"client": split.client, "server": split.server, "reference": reference}
    names: dict[str, list[str]] = {"client": [], "server": [], "reference": random}
    for finding in findings:
        if finding.kind is not FindingKind.FROZEN:
            names[finding.segment].append(finding.module)
        if finding.kind in (FindingKind.BATCH_NORM, FindingKind.BUFFER):
            names["reference"].append(finding.module)
    # A forward that draws by itself has no layer to hold; then the whole model is held.
    if any("" in held for held in names.values()):
        names = {tree: [""] for tree in names}
    for tree, held in names.items():
        modules = dict(trees[tree].named_modules())
        for name in held:
            if name in modules:
                _pin(modules[name])
    return tuple(dict.fromkeys([*names["client"], *names["server"]]))


def _pin(module: nn.Module) -> None:
    """Keep a module in evaluation mode, also when what contains it is put into training."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def _split_step(
    split: SplitModel, inputs: Inputs, labels: Tensor, loss_fn: LossFn, num_clients: int
) -> Tensor:
    """Leave the gradients of one step in the segments, and return the loss."""
    segment = ModuleIndex(split.client)
    parts = [
        slice(int(part[0]), int(part[-1]) + 1)
        for part in torch.arange(len(labels)).tensor_split(num_clients)
    ]
    passes = [
        client_pass.forward(
            segment, segment.tensors, _take(inputs, part), training=True, seed=_SEED
        )
        for part in parts
    ]
    activations = [client.activations for client in passes]
    rows = sum(len(part) for part in activations)
    if rows != len(labels):
        raise CutError(
            f"the activations of {len(labels)} examples have {rows} rows; the first "
            "dimension of what crosses the cut is the example. Cut where it is."
        )
    server = server_pass.forward(
        ModuleIndex(split.server), activations, labels, loss_fn, seed=_SEED
    )
    for client, cut_gradient in zip(passes, server.backward(), strict=True):
        for name, gradient in client.backward(cut_gradient).items():
            total = segment.parameters[name].grad
            segment.parameters[name].grad = gradient if total is None else total + gradient
    return server.loss.detach()


def _central_step(reference: nn.Module, inputs: Inputs, labels: Tensor, loss_fn: LossFn) -> Tensor:
    with seeded(_SEED):
        loss = loss_fn(_call(reference, inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _training_flops(
    split: SplitModel, inputs: Inputs, labels: Tensor, loss_fn: LossFn
) -> tuple[int, int]:
    """Count what each side computes for an example."""
    with torch.no_grad(), seeded(_SEED):
        activations = _call(split.client, inputs)
    activations.requires_grad_()
    return (
        count_training_flops(split.client, lambda client: _call(client, inputs), len(labels)),
        count_training_flops(
            split.server, lambda server: loss_fn(server(activations), labels), len(labels)
        ),
    )


def _gradients(model: nn.Module | SplitModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _difference(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Largest absolute difference over all tensors, by the largest reference value."""
    zero = torch.zeros((), dtype=torch.float64)
    # Through torch, because its maximum of anything and nan is nan.
    worst = torch.stack(
        [
            (ours.get(name, zero) - reference.get(name, zero)).detach().abs().max()
            for name in {**ours, **reference}
        ]
    ).max()
    scale = torch.stack([tensor.detach().abs().max() for tensor in reference.values()]).max()
    return float(worst / scale if scale > 0 else worst)


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    inputs = _take(inputs, slice(None))
    match inputs:
        case tuple():
            output = module(*inputs)
        case dict():
            output = module(**inputs)
        case _:
            output = module(inputs)
    return cast(Tensor, output)


def _take(inputs: Inputs, part: slice) -> Inputs:
    # A copy: a first layer may work in place, and every run starts from the same inputs.
    return _map(lambda tensor: tensor[part].clone(), inputs)


def _map(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    match inputs:
        case tuple():
            return tuple(change(tensor) for tensor in inputs)
        case dict():
            return {name: change(tensor) for name, tensor in inputs.items()}
    return change(inputs)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
