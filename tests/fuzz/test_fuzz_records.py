"""Flower records that lie, in their values and in their arrays, as either end reads them."""

from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flower_psl.wire import Phase, StepId, StepReply, StepRequest, parts, records

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

ID = StepId(seed=3, server_round=2, plan=0, step=40, client_key=9, start=6, batch_size=4)
REPLY = StepReply(
    phase=Phase.FORWARD,
    id=ID,
    activations=torch.rand(4, 2, 3),
    activation_dtype=torch.float32,
    labels=torch.arange(4),
    unused=("bn.bias",),
)
REQUEST = StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.rand(4, 2))
SIZES = (-1, 0, 1, 2, 4, 2**31, 2**62, 2**64, 10**400)


def content(kind: str) -> RecordDict:
    if kind == "reply":
        return records.encode_reply(REPLY)
    return records.encode_request(REQUEST, records.encode_tensors({"w": torch.rand(2)}))


def read(kind: str, content: RecordDict) -> None:
    if kind == "request":
        request = records.decode_request(content)
        tensors = [*request.weights.values(), *parts.request_tensors(request).values()]
    else:
        tensors = list(parts.reply_tensors(records.decode_reply(content)).values())
    assert sum(tensor.nbytes for tensor in tensors) < 1000


def lying_array(draws: "Draws", array: Array) -> Array:
    """Return an array of which one promise does not hold; Flower looks at their types only."""
    values: dict[str, Any] = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "data": array.data,
    }
    sizes = list(array.shape)
    match int(draws.integers(5)):
        case 0:
            values["dtype"] = ("float64", "int8", "object", "", "O8", "x" * 9000)[
                int(draws.integers(6))
            ]
        case 1:
            sizes[int(draws.integers(len(sizes)))] = SIZES[int(draws.integers(len(SIZES)))]
            values["shape"] = tuple(sizes)
        case 2:
            sizes[int(draws.integers(len(sizes))) :] = [1] * int(draws.integers(70))
            values["shape"] = tuple(sizes)
        case 3:
            values["data"] = (array.data[:-1], array.data * 2, b"")[int(draws.integers(3))]
        case _:
            values["stype"] = ("numpy.ndarray", "pickle", "")[int(draws.integers(3))]
    return Array(**values)


def test_the_truth_is_read() -> None:
    for kind in ("reply", "request"):
        read(kind, content(kind))


def test_arrays_that_lie(fuzzing: "type[Fuzz]") -> None:
    whole = {kind: content(kind) for kind in ("reply", "request")}

    def make(draws: "Draws") -> "Mutant":
        kind = list(whole)[int(draws.integers(2))]
        group = "weights" if kind == "request" and draws.integers(2) else "tensors"
        arrays = dict(whole[kind].array_records[group])
        name = list(arrays)[int(draws.integers(len(arrays)))]
        arrays[name] = lying_array(draws, arrays[name])
        lying = RecordDict({**whole[kind], group: ArrayRecord(arrays)})
        return fuzzing.mutant(lambda: read(kind, lying), [name])

    with fuzzing.within(64_000_000):
        assert 3_000 < fuzzing.run(4_000, make) < 4_000


def test_records_that_are_not_there_or_of_another_kind(fuzzing: "type[Fuzz]") -> None:
    def make(draws: "Draws") -> "Mutant":
        kind = ("reply", "request")[int(draws.integers(2))]
        lying = content(kind)
        name = list(lying)[int(draws.integers(len(lying)))]
        del lying[name]
        if draws.integers(2):
            lying[name] = ConfigRecord({"a": 1}) if name != "psl" else ArrayRecord()
        return fuzzing.mutant(lambda: read(kind, lying), [name])

    assert fuzzing.run(200, make) == 200


def test_configurations_that_lie(fuzzing: "type[Fuzz]") -> None:
    whole = {kind: content(kind) for kind in ("reply", "request")}

    def make(draws: "Draws") -> "Mutant":
        kind = list(whole)[int(draws.integers(2))]
        values, field = fuzzing.mutated(draws, dict(whole[kind].config_records["psl"]))
        names = {*fuzzing.spellings(field.removesuffix("-encoding")), "gradient", "number may be"}
        try:
            lying = RecordDict({**whole[kind], "psl": ConfigRecord(values)})
        except (TypeError, ValueError):  # Flower carries no such value
            lying = whole[kind]
        return fuzzing.mutant(lambda: read(kind, lying), names)

    with fuzzing.within(64_000_000):
        assert 2_000 < fuzzing.run(4_000, make) < 4_000
