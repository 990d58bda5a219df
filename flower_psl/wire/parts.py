"""Requests and replies as two plain things: a table of small values, and named tensors.

What carries them turns these into its own form, `wire.records` into Flower's records and
`wire.frames` into frames of bytes. What they mean is written here once.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.describe import DescribeReply, TensorSpec
from flower_psl.wire.encodings import Encodings
from flower_psl.wire.json_text import from_json
from flower_psl.wire.step import Phase, StepId, StepReply, StepRequest
from flower_psl.wire.tensors import check_shape, dtype_name, dtype_of

Config = dict[str, int | float | str | list[int] | list[str]]

_ID = "id"
_PHASE = "phase"
_PREVIOUS = "previous"
_FORGET = "forget"
_RUN = "run"
_DTYPE = "activation-dtype"
_PHASES = {str(phase): phase for phase in Phase}
_GROUPS = ("gradients", "moments", "weights")
# Sums of what clients say must stay finite, and no answer takes half a year.
_LONGEST_S = 1e7


def request_config(request: StepRequest) -> Config:
    """Return the small values of a request."""
    previous: Config = {} if request.previous is None else {_PREVIOUS: list(request.previous)}
    forget: Config = {_FORGET: True} if request.forget else {}
    return {
        _PHASE: str(request.phase),
        _ID: list(request.id),
        **previous,
        **forget,
        **({_RUN: request.run} if request.run else {}),
        **request.encodings.to_config(),
    }


def request_tensors(request: StepRequest) -> dict[str, Tensor]:
    """Return the tensors of a request but for its weights, which clients share."""
    gradient = {} if request.gradient is None else {"gradient": request.gradient}
    return {**gradient, **request.extras}


def request_of(
    config: Mapping[str, object], weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> StepRequest:
    """Return the request of its parts.

    Raises
    ------
    ProtocolError
        If a value is missing or is not what a request holds.
    """
    extras = _extras(tensors, "gradient")
    if unknown := sorted(name for name in tensors if name != "gradient" and name not in extras):
        raise ProtocolError(
            f"a request holds the tensors {unknown}; beside weights it has a gradient only. "
            "Install the same flower-psl on both sides."
        )
    return StepRequest(
        phase=_phase(config),
        id=step_id_of(config),
        weights=weights,
        gradient=tensors.get("gradient"),
        previous=step_id_of(config, _PREVIOUS) if _PREVIOUS in config else None,
        forget=config.get(_FORGET) is True,
        run=str(config.get(_RUN, "")),
        extras=extras,
        encodings=Encodings.from_config(config),
    )


def reply_config(reply: StepReply) -> Config:
    """Return the small values of a reply."""
    # Nothing empty: Flower's message_size_mod fails on it.
    dtype: Config = (
        {} if reply.activation_dtype is None else {_DTYPE: dtype_name(reply.activation_dtype)}
    )
    unused: Config = {"unused": list(reply.unused)} if reply.unused else {}
    return {
        _PHASE: str(reply.phase),
        _ID: list(reply.id),
        **dtype,
        "compute-s": reply.compute_s,
        "encode-s": reply.encode_s,
        **unused,
    }


def reply_tensors(reply: StepReply) -> dict[str, Tensor]:
    """Return the tensors of a reply, those of a group with its name in front."""
    tensors = {
        name: tensor
        for name, tensor in (("activations", reply.activations), ("labels", reply.labels))
        if tensor is not None
    }
    tensors |= reply.extras
    for group in _GROUPS:
        named: Mapping[str, Tensor] = getattr(reply, group)
        tensors |= {f"{group}/{name}": tensor for name, tensor in named.items()}
    return tensors


def reply_of(
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    exchange_s: float | None = None,
) -> StepReply:
    """Return the reply of its parts, and of the seconds that it took if they were measured.

    Raises
    ------
    ProtocolError
        If a value is missing or is not what a reply holds.
    """
    unused = config.get("unused", [])
    if not isinstance(unused, list) or not all(isinstance(name, str) for name in unused):
        raise ProtocolError(f"unused is {unused!r}; it must be a list of parameter names")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    batch: dict[str, Tensor] = {}
    extras = _extras(tensors, "activations")
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        if name and group in groups:
            groups[group][name] = tensor
        elif full_name in ("activations", "labels"):
            batch[full_name] = tensor
        elif full_name not in extras:
            raise ProtocolError(
                f"a reply holds the tensor {full_name!r}; known are activations, labels and "
                f"the groups {list(_GROUPS)}. Install the same flower-psl on both sides."
            )
    return StepReply(
        phase=_phase(config),
        id=step_id_of(config),
        activations=batch.get("activations"),
        activation_dtype=_activation_dtype(config),
        extras=extras,
        labels=batch.get("labels"),
        gradients=groups["gradients"],
        unused=tuple(unused),
        moments=groups["moments"],
        weights=groups["weights"],
        compute_s=_seconds(config, "compute-s"),
        encode_s=_seconds(config, "encode-s"),
        exchange_s=exchange_s,
    )


def description_config(reply: DescribeReply) -> Config:
    """Return a description, which has no tensors."""
    segment = {
        name: [list(spec.shape), spec.dtype, spec.trainable]
        for name, spec in reply.segment.items()
    }
    return {
        "version": reply.version,
        # -1 stands for "none given": Flower's records have no null, and keys start at 0.
        "client-key": -1 if reply.client_key is None else reply.client_key,
        "num-examples": reply.num_examples,
        "num-test-examples": reply.num_test_examples,
        "has-optimizer": reply.has_optimizer,
        "has-segment": reply.has_segment,
        "keeps-state": reply.keeps_state,
        "segment": json.dumps(segment),
    }


def description_of(config: Mapping[str, object]) -> DescribeReply:
    """Return the description of its values.

    Raises
    ------
    ProtocolError
        If a value is missing or is not what a description holds.
    """
    numbers = {}
    for name in ("version", "client-key", "num-examples", "num-test-examples"):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ProtocolError(f"a description's {name} is {value!r}; it must be an integer")
        numbers[name] = value
    return DescribeReply(
        version=numbers["version"],
        client_key=None if numbers["client-key"] == -1 else numbers["client-key"],
        num_examples=numbers["num-examples"],
        num_test_examples=numbers["num-test-examples"],
        segment=_segment(config),
        has_optimizer=config.get("has-optimizer") is True,
        has_segment=config.get("has-segment") is True,
        keeps_state=config.get("keeps-state") is True,
    )


def _segment(config: Mapping[str, object]) -> dict[str, TensorSpec]:
    try:
        table = from_json(str(config.get("segment")), "its tensors")
        return {name: _spec(name, entry) for name, entry in table.items()}
    except ProtocolError as error:
        raise ProtocolError(
            f"a description's segment is not a table of names, shapes and dtypes ({error}); "
            "install the same flower-psl on both sides"
        ) from error


def _spec(name: str, entry: object) -> TensorSpec:
    match entry:
        case [list(shape), str(dtype), bool(trainable)]:
            check_shape(shape)
            return TensorSpec(tuple(shape), dtype, trainable)
    raise ProtocolError(f"{name!r} is {entry!r}")


def _activation_dtype(config: Mapping[str, object]) -> torch.dtype | None:
    value = config.get(_DTYPE)
    if value is None:
        return None
    try:
        return dtype_of(str(value))
    except ProtocolError as error:
        raise ProtocolError(f"{_DTYPE} is {value!r}: {error}") from error


def _extras(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return what decoding a tensor needs besides; `wire.encodings` says what that is."""
    if name not in tensors:
        return {}
    return {part: tensor for part, tensor in tensors.items() if part.startswith(f"{name}|")}


def _seconds(config: Mapping[str, object], name: str) -> float:
    value = config.get(name)
    if not isinstance(value, float) or not 0 <= value <= _LONGEST_S:
        raise ProtocolError(
            f"{name} is {value!r}; it must be seconds, finite, from 0.0 to {_LONGEST_S:g}"
        )
    return value


def _phase(config: Mapping[str, object]) -> Phase:
    value = config.get(_PHASE)
    phase = _PHASES.get(str(value))
    if phase is None:
        raise ProtocolError(f"phase {value!r} is unknown; it is one of {list(_PHASES)}")
    return phase


def step_id_of(config: Mapping[str, object], name: str = _ID) -> StepId:
    """Return the id of a step among small values.

    Raises
    ------
    ProtocolError
        If it is missing or is not one.
    """
    value = config.get(name)
    if (
        not isinstance(value, list)
        or len(value) != len(StepId._fields)
        or {*map(type, value)} != {int}
        or not 0 <= min(value) <= max(value) < 2**64
    ):
        raise ProtocolError(
            f"{name} {value!r} is not the {len(StepId._fields)} integers of a step, from 0 to "
            "2**64 - 1 each"
        )
    return StepId(*value)
