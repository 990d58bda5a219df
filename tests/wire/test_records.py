from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire import (
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    TensorSpec,
    records,
)

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=2**63 - 1, start=16, batch_size=2)
DESCRIPTION = DescribeReply(
    client_key=2**63 - 1,
    num_examples=10,
    num_test_examples=0,
    segment={"w": TensorSpec((2, 3), "float32", True), "n": TensorSpec((), "int64", False)},
)
TENSORS = {
    "double": torch.tensor([1.0, -0.0], dtype=torch.float64),
    "single": torch.rand(2, 3),
    "half": torch.tensor([1.5], dtype=torch.float16),
    "bfloat": torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16),
    "long": torch.tensor([-(2**60)]),
    "int": torch.tensor([5], dtype=torch.int32),
    "short": torch.tensor([5], dtype=torch.int16),
    "char": torch.tensor([-5], dtype=torch.int8),
    "byte": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def over_the_wire(content: RecordDict) -> RecordDict:
    """Return the records as the other side gets them: from their serialized form."""
    return RecordDict.inflate(
        content.deflate(),
        {child.object_id: _inflated(child) for child in (content.children or {}).values()},
    )


def _inflated(child: Any) -> Any:
    children = {grandchild.object_id: _inflated(grandchild) for grandchild in _children(child)}
    return type(child).inflate(child.deflate(), children or None)


def _children(child: Any) -> list[Any]:
    return list((child.children or {}).values())


def forward_content() -> RecordDict:
    weights = {"w": torch.rand(2, 2)}
    request = StepRequest(phase=Phase.FORWARD, id=ID, weights=weights)
    return records.encode_request(request, records.encode_tensors(weights))


def reply_content() -> RecordDict:
    return records.encode_reply(
        StepReply(
            phase=Phase.FORWARD, id=ID, activations=torch.rand(2, 3), labels=torch.zeros(2).long()
        )
    )


def config(content: RecordDict) -> ConfigRecord:
    record = content["psl"]
    assert isinstance(record, ConfigRecord)
    return record


def arrays(content: RecordDict, name: str) -> ArrayRecord:
    record = content[name]
    assert isinstance(record, ArrayRecord)
    return record


def test_tensors_of_all_kinds_come_back() -> None:
    assert_same(records.decode_tensors(records.encode_tensors(TENSORS)), TENSORS)


def test_tensors_come_back_from_serialized_records() -> None:
    content = over_the_wire(RecordDict({"tensors": records.encode_tensors(TENSORS)}))
    assert_same(records.decode_tensors(arrays(content, "tensors")), TENSORS)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 3), max_size=4), max_size=4),
    st.sampled_from([torch.float64, torch.bfloat16, torch.int64]),
)
def test_any_shapes_and_names_come_back(shapes: dict[str, list[int]], dtype: torch.dtype) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    assert_same(records.decode_tensors(records.encode_tensors(tensors)), tensors)


def test_an_array_is_its_raw_bytes() -> None:
    array = records.encode_tensors({"w": torch.tensor([[1.0, 2.0]])})["w"]
    assert (array.dtype, tuple(array.shape), array.stype) == ("float32", (1, 2), "psl.raw")
    assert array.data == bytes.fromhex("0000803f00000040")


def test_a_forward_request_comes_back() -> None:
    weights = {"w": torch.rand(2, 2), "bn.num_batches_tracked": torch.tensor(4)}
    request = StepRequest(phase=Phase.FORWARD, id=ID, weights=weights)
    content = records.encode_request(request, records.encode_tensors(weights))
    assert set(content) == {"psl", "weights", "tensors"}
    assert dict(config(content)) == {
        "phase": "forward",
        "id": [7, 2, 0, 40, 2**63 - 1, 16, 2],
        "activations-encoding": "raw",
        "gradients-encoding": "raw",
        "weights-encoding": "raw",
    }
    back = records.decode_request(over_the_wire(content))
    assert (back.phase, back.id, back.gradient) == (Phase.FORWARD, ID, None)
    assert_same(dict(back.weights), weights)


def test_a_backward_request_comes_back() -> None:
    gradient = torch.rand(2, 3)
    request = StepRequest(phase=Phase.BACKWARD, id=ID, gradient=gradient)
    back = records.decode_request(
        over_the_wire(records.encode_request(request, records.encode_tensors({})))
    )
    assert (back.phase, back.id, back.weights) == (Phase.BACKWARD, ID, {})
    assert back.gradient is not None
    assert torch.equal(back.gradient, gradient)


def test_a_reply_comes_back() -> None:
    reply = StepReply(
        phase=Phase.FORWARD,
        id=ID,
        activations=torch.rand(2, 3),
        labels=torch.tensor([1, 0]),
        gradients={"block/conv.weight": torch.rand(2)},
        unused=("block/conv.bias", "spare"),
        moments={"bn.mean": torch.rand(1, 2).double(), "bn.count": torch.tensor([4])},
        compute_s=0.25,
    )
    back = records.decode_reply(over_the_wire(records.encode_reply(reply)))
    assert (back.phase, back.id, back.compute_s) == (Phase.FORWARD, ID, 0.25)
    assert back.unused == ("block/conv.bias", "spare")
    assert back.activations is not None
    assert back.labels is not None
    assert reply.activations is not None
    assert torch.equal(back.activations, reply.activations)
    assert back.labels.tolist() == [1, 0]
    assert_same(dict(back.gradients), dict(reply.gradients))
    assert_same(dict(back.moments), dict(reply.moments))


def test_a_reply_without_a_batch_comes_back() -> None:
    reply = StepReply(phase=Phase.BACKWARD, id=ID)
    assert records.decode_reply(records.encode_reply(reply)) == reply


def test_a_description_comes_back() -> None:
    content = over_the_wire(records.encode_description(DESCRIPTION))
    assert records.decode_description(content) == DESCRIPTION


def test_an_array_of_another_serialization_is_refused() -> None:
    record = ArrayRecord([torch.rand(2).numpy()])
    with pytest.raises(
        ProtocolError, match=r"'0' is serialized as 'numpy.*', not 'psl.raw';.*same"
    ):
        records.decode_tensors(record)


def test_an_array_that_is_cut_off_is_refused() -> None:
    record = ArrayRecord({"w": Array("float32", (3,), "psl.raw", bytes(8))})
    with pytest.raises(ProtocolError, match=r"8 bytes for a float32 tensor of shape \(3,\)"):
        records.decode_tensors(record)


@pytest.mark.parametrize("name", ["psl", "weights", "tensors"])
def test_a_request_without_one_of_its_records_is_refused(name: str) -> None:
    content = forward_content()
    del content[name]
    with pytest.raises(ProtocolError, match=f"without the .*Record '{name}'.*send it with"):
        records.decode_request(content)


def test_a_record_of_the_wrong_kind_is_refused() -> None:
    content = forward_content()
    content["psl"] = MetricRecord({"id": 1})
    with pytest.raises(ProtocolError, match="without the ConfigRecord 'psl'"):
        records.decode_request(content)


@pytest.mark.parametrize("name", ["psl", "tensors"])
def test_a_reply_without_one_of_its_records_is_refused(name: str) -> None:
    content = reply_content()
    del content[name]
    with pytest.raises(ProtocolError, match=f"without the .*Record '{name}'"):
        records.decode_reply(content)


def test_a_description_without_its_record_is_refused() -> None:
    content = records.encode_description(DESCRIPTION)
    del content["psl"]
    with pytest.raises(ProtocolError, match=r"without the ConfigRecord 'psl'.*send it with"):
        records.decode_description(content)


@pytest.mark.parametrize(("name", "value"), [("id", [1, 2]), ("phase", "sideways")])
def test_values_that_are_not_those_of_a_step_are_refused(name: str, value: Any) -> None:
    request, reply = forward_content(), reply_content()
    for content in (request, reply):
        config(content)[name] = value
    with pytest.raises(ProtocolError, match=f"^{name} "):
        records.decode_request(request)
    with pytest.raises(ProtocolError, match=f"^{name} "):
        records.decode_reply(reply)


def test_values_that_are_not_those_of_a_description_are_refused() -> None:
    content = records.encode_description(DESCRIPTION)
    config(content)["segment"] = "[]"
    with pytest.raises(ProtocolError, match="segment is not a table of names"):
        records.decode_description(content)
