"""Requests and replies as Flower's records: tensors in ArrayRecords, the rest in one config.

A step's `RecordDict` holds ``psl`` (ConfigRecord: phase, id, seconds) and ``tensors``;
a forward request holds ``weights`` too, a record of its own so that it is made once a
step for all clients.
"""

import json
import math
from collections.abc import Mapping
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.describe import DescribeReply, TensorSpec
from flower_psl.wire.step import Phase, StepId, StepReply, StepRequest
from flower_psl.wire.tensors import dtype_name, from_bytes, to_bytes

_SERIALIZATION = "psl.raw"
_ID = "id"
_PHASE = "phase"
_GROUPS = ("gradients", "moments")

T = TypeVar("T")


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return an ArrayRecord of tensors, each as its raw bytes."""
    return ArrayRecord(
        {
            name: Array(
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
                stype=_SERIALIZATION,
                data=to_bytes(tensor),
            )
            for name, tensor in tensors.items()
        }
    )


def decode_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of `encode_tensors`.

    Raises
    ------
    ProtocolError
        If an array is serialized in another way, or its header does not fit its bytes.
    """
    tensors = {}
    for name, array in record.items():
        if array.stype != _SERIALIZATION:
            raise ProtocolError(
                f"array {name!r} is serialized as {array.stype!r}, not {_SERIALIZATION!r}; "
                "install the same flower-psl on both sides"
            )
        tensors[name] = from_bytes(array.data, array.dtype, array.shape)
    return tensors


def encode_request(request: StepRequest, weights: ArrayRecord) -> RecordDict:
    """Return a request as a RecordDict.

    Parameters
    ----------
    request : StepRequest
        The request.
    weights : ArrayRecord
        ``encode_tensors(request.weights)``, handed in because clients share it.
    """
    tensors = {} if request.gradient is None else {"gradient": request.gradient}
    return RecordDict(
        {
            "psl": ConfigRecord({_PHASE: str(request.phase), _ID: list(request.id)}),
            "weights": weights,
            "tensors": encode_tensors(tensors),
        }
    )


def decode_request(content: RecordDict) -> StepRequest:
    """Return the request of a RecordDict.

    Raises
    ------
    ProtocolError
        If a record is missing or does not hold what `encode_request` wrote.
    """
    config = _record(content, "psl", ConfigRecord)
    return StepRequest(
        phase=_phase(config),
        id=_step_id(config),
        weights=decode_tensors(_record(content, "weights", ArrayRecord)),
        gradient=decode_tensors(_record(content, "tensors", ArrayRecord)).get("gradient"),
    )


def encode_reply(reply: StepReply) -> RecordDict:
    """Return a reply as a RecordDict."""
    tensors = {
        name: tensor
        for name, tensor in (("activations", reply.activations), ("labels", reply.labels))
        if tensor is not None
    }
    for group in _GROUPS:
        named: Mapping[str, Tensor] = getattr(reply, group)
        tensors |= {f"{group}/{name}": tensor for name, tensor in named.items()}
    config = ConfigRecord(
        {_PHASE: str(reply.phase), _ID: list(reply.id), "compute-s": reply.compute_s}
    )
    return RecordDict({"psl": config, "tensors": encode_tensors(tensors)})


def decode_reply(content: RecordDict) -> StepReply:
    """Return the reply of a RecordDict.

    Raises
    ------
    ProtocolError
        If a record is missing or does not hold what `encode_reply` wrote.
    """
    config = _record(content, "psl", ConfigRecord)
    tensors = decode_tensors(_record(content, "tensors", ArrayRecord))
    compute_s = config.get("compute-s")
    if not isinstance(compute_s, float) or not 0 <= compute_s < math.inf:
        raise ProtocolError(
            f"compute-s is {compute_s!r}; it must be seconds, finite and 0.0 or more"
        )
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    batch: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        if name and group in groups:
            groups[group][name] = tensor
        elif full_name in ("activations", "labels"):
            batch[full_name] = tensor
        else:
            raise ProtocolError(
                f"a reply holds the tensor {full_name!r}; known are activations, labels and "
                f"the groups {list(_GROUPS)}. Install the same flower-psl on both sides."
            )
    return StepReply(
        phase=_phase(config),
        id=_step_id(config),
        activations=batch.get("activations"),
        labels=batch.get("labels"),
        gradients=groups["gradients"],
        moments=groups["moments"],
        compute_s=compute_s,
    )


def encode_description(reply: DescribeReply) -> RecordDict:
    """Return a description as a RecordDict."""
    segment = {
        name: [list(spec.shape), spec.dtype, spec.trainable]
        for name, spec in reply.segment.items()
    }
    config = ConfigRecord(
        {
            "version": reply.version,
            # -1 stands for "none given": a ConfigRecord has no null, and keys start at 0.
            "client-key": -1 if reply.client_key is None else reply.client_key,
            "num-examples": reply.num_examples,
            "num-test-examples": reply.num_test_examples,
            "segment": json.dumps(segment),
        }
    )
    return RecordDict({"psl": config})


def decode_description(content: RecordDict) -> DescribeReply:
    """Return the description of a RecordDict.

    Raises
    ------
    ProtocolError
        If it does not hold what `encode_description` wrote.
    """
    config = _record(content, "psl", ConfigRecord)
    numbers = {}
    for name in ("version", "client-key", "num-examples", "num-test-examples"):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ProtocolError(f"a description's {name} is {value!r}; it must be an integer")
        numbers[name] = value
    try:
        segment = {
            str(name): TensorSpec(tuple(int(size) for size in shape), str(dtype), bool(trainable))
            for name, (shape, dtype, trainable) in json.loads(str(config.get("segment"))).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(
            f"a description's segment is not a table of names, shapes and dtypes ({error}); "
            "install the same flower-psl on both sides"
        ) from error
    return DescribeReply(
        version=numbers["version"],
        client_key=None if numbers["client-key"] == -1 else numbers["client-key"],
        num_examples=numbers["num-examples"],
        num_test_examples=numbers["num-test-examples"],
        segment=segment,
    )


def _record(content: RecordDict, name: str, kind: type[T]) -> T:
    record = content.get(name)
    if not isinstance(record, kind):
        raise ProtocolError(
            f"the message holds {sorted(content)}, without the {kind.__name__} {name!r} of "
            "parallel split learning; send it with flower-psl"
        )
    return record


def _phase(config: ConfigRecord) -> Phase:
    value = config.get(_PHASE)
    try:
        return Phase(str(value))
    except ValueError:
        raise ProtocolError(
            f"phase {value!r} is unknown; it is one of {[str(phase) for phase in Phase]}"
        ) from None


def _step_id(config: ConfigRecord) -> StepId:
    value = config.get(_ID)
    if (
        not isinstance(value, list)
        or len(value) != len(StepId._fields)
        or not all(isinstance(number, int) for number in value)
    ):
        raise ProtocolError(f"id {value!r} is not the {len(StepId._fields)} integers of a step")
    return StepId(*(int(number) for number in value))
