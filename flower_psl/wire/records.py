"""Requests and replies as Flower's records: tensors in ArrayRecords, the rest in one config.

A step's `RecordDict` holds ``psl`` (ConfigRecord: phase, id, seconds) and ``tensors``;
a forward request holds ``weights`` too, a record of its own so that it is made once a
step for all clients.
"""

from collections.abc import Mapping
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire import parts
from flower_psl.wire.describe import DescribeReply
from flower_psl.wire.step import StepReply, StepRequest
from flower_psl.wire.tensors import dtype_name, from_bytes, to_bytes

_SERIALIZATION = "psl.raw"

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
        try:
            tensors[name] = from_bytes(array.data, array.dtype, array.shape)
        except ProtocolError as error:
            raise ProtocolError(f"array {name!r}: {error}") from error
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
    return RecordDict(
        {
            "psl": ConfigRecord({**parts.request_config(request)}),
            "weights": weights,
            "tensors": encode_tensors(parts.request_tensors(request)),
        }
    )


def decode_request(content: RecordDict) -> StepRequest:
    """Return the request of a RecordDict.

    Raises
    ------
    ProtocolError
        If a record is missing or does not hold what `encode_request` wrote.
    """
    return parts.request_of(
        _record(content, "psl", ConfigRecord),
        decode_tensors(_record(content, "weights", ArrayRecord)),
        decode_tensors(_record(content, "tensors", ArrayRecord)),
    )


def encode_reply(reply: StepReply) -> RecordDict:
    """Return a reply as a RecordDict."""
    config = ConfigRecord({**parts.reply_config(reply)})
    return RecordDict({"psl": config, "tensors": encode_tensors(parts.reply_tensors(reply))})


def decode_reply(content: RecordDict) -> StepReply:
    """Return the reply of a RecordDict.

    Raises
    ------
    ProtocolError
        If a record is missing or does not hold what `encode_reply` wrote.
    """
    return parts.reply_of(
        _record(content, "psl", ConfigRecord),
        decode_tensors(_record(content, "tensors", ArrayRecord)),
    )


def encode_description(reply: DescribeReply) -> RecordDict:
    """Return a description as a RecordDict."""
    return RecordDict({"psl": ConfigRecord({**parts.description_config(reply)})})


def decode_description(content: RecordDict) -> DescribeReply:
    """Return the description of a RecordDict.

    Raises
    ------
    ProtocolError
        If it does not hold what `encode_description` wrote.
    """
    return parts.description_of(_record(content, "psl", ConfigRecord))


def _record(content: RecordDict, name: str, kind: type[T]) -> T:
    record = content.get(name)
    if not isinstance(record, kind):
        raise ProtocolError(
            f"the message holds {sorted(content)}, without the {kind.__name__} {name!r} of "
            "parallel split learning; send it with flower-psl"
        )
    return record
