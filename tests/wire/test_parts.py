import json
from typing import Any

import pytest
import torch

from flower_psl import ProtocolError
from flower_psl.wire import (
    PROTOCOL_VERSION,
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    TensorSpec,
    parts,
)

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=2**63 - 1, start=16, batch_size=2)
WEIGHTS = {"w": torch.rand(2, 2), "bn.num_batches_tracked": torch.tensor(4)}
FORWARD = StepRequest(phase=Phase.FORWARD, id=ID, weights=WEIGHTS)
BACKWARD = StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.rand(2, 3))
TRAIN = StepRequest(
    phase=Phase.TRAIN,
    id=ID,
    weights=WEIGHTS,
    previous=ID._replace(step=38, batch_size=3),
    gradient=torch.rand(3, 3),
    forget=True,
)
SAVE = StepRequest(phase=Phase.SAVE, id=ID, previous=ID._replace(step=30), run="3f9a")
REPLY = StepReply(
    phase=Phase.FORWARD,
    id=ID,
    activations=torch.rand(2, 3),
    labels=torch.tensor([1, 0]),
    gradients={"block/conv.weight": torch.rand(2)},
    unused=("block/conv.bias", "spare"),
    moments={"bn.mean": torch.rand(1, 2).double(), "bn.count": torch.tensor([4])},
    weights={"block/conv.weight": torch.rand(2)},
    compute_s=0.25,
)
DESCRIPTION = DescribeReply(
    client_key=5,
    num_examples=10,
    num_test_examples=4,
    segment={"w": TensorSpec((2, 3), "float32", True), "n": TensorSpec((), "int64", False)},
    has_optimizer=True,
    has_segment=True,
    keeps_state=True,
)


def request_values(**changes: object) -> dict[str, object]:
    return {**parts.request_config(FORWARD), **changes}


def reply_values(**changes: object) -> dict[str, object]:
    return {**parts.reply_config(REPLY), **{k.replace("_", "-"): v for k, v in changes.items()}}


def description_values(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {**parts.description_config(DESCRIPTION)}
    return values | {name.replace("_", "-"): value for name, value in changes.items()}


@pytest.mark.parametrize(
    "request_", [FORWARD, BACKWARD, TRAIN, SAVE], ids=["forward", "backward", "train", "save"]
)
def test_a_request_comes_back_from_its_parts(request_: StepRequest) -> None:
    back = parts.request_of(
        parts.request_config(request_), request_.weights, parts.request_tensors(request_)
    )
    for name in ("phase", "id", "previous", "forget", "run"):
        assert getattr(back, name) == getattr(request_, name), name
    # The very tensors: nothing is copied on the way.
    assert back.weights is request_.weights
    assert back.gradient is request_.gradient


def test_a_reply_comes_back_from_its_parts() -> None:
    tensors = parts.reply_tensors(REPLY)
    assert list(tensors) == [
        "activations",
        "labels",
        "gradients/block/conv.weight",
        "moments/bn.mean",
        "moments/bn.count",
        "weights/block/conv.weight",
    ]
    back = parts.reply_of(parts.reply_config(REPLY), tensors)
    # Tensors are compared by identity, since nothing is copied.
    for name, value in vars(REPLY).items():
        ours = getattr(back, name)
        assert ours is value or list(ours) == list(value), name
    assert back.gradients["block/conv.weight"] is REPLY.gradients["block/conv.weight"]
    assert back.moments["bn.mean"] is REPLY.moments["bn.mean"]


def test_a_reply_without_tensors_comes_back() -> None:
    reply = StepReply(phase=Phase.BACKWARD, id=ID)
    assert parts.reply_tensors(reply) == {}
    assert parts.reply_of(parts.reply_config(reply), {}) == reply


@pytest.mark.parametrize("client_key", [None, 0, 2**63 - 1])
def test_a_description_comes_back_from_its_values(client_key: int | None) -> None:
    description = DescribeReply(
        client_key=client_key,
        num_examples=10,
        num_test_examples=0,
        segment=DESCRIPTION.segment,
    )
    assert parts.description_of(parts.description_config(description)) == description


def test_a_description_is_readable_text() -> None:
    assert description_values(client_key=-1) == {
        "version": PROTOCOL_VERSION,
        "client-key": -1,
        "num-examples": 10,
        "num-test-examples": 4,
        "has-optimizer": True,
        "has-segment": True,
        "keeps-state": True,
        "segment": '{"w": [[2, 3], "float32", true], "n": [[], "int64", false]}',
    }


@pytest.mark.parametrize(
    "values", [request_values(), reply_values(), description_values()], ids=["ask", "reply", "who"]
)
def test_values_survive_json(values: dict[str, object]) -> None:
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("phase", ["", "sideways", "FORWARD", None, 3])
def test_an_unknown_phase_is_refused(phase: Any) -> None:
    text = rf"phase {phase!r} is unknown; .*'forward', 'backward'"
    with pytest.raises(ProtocolError, match=text):
        parts.request_of(request_values(phase=phase), {}, {})
    with pytest.raises(ProtocolError, match=text):
        parts.reply_of(reply_values(phase=phase), {})


@pytest.mark.parametrize(
    "value",
    [None, [1, 2, 3], [1.0] * 7, ["1"] * 7, "1234567", 7, [-1] * 7, [2**64] * 7, [True] * 7],
)
def test_an_id_that_is_not_one_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match="is not the 7 integers of a step"):
        parts.request_of(request_values(id=value), {}, {})
    with pytest.raises(ProtocolError, match="is not the 7 integers of a step"):
        parts.reply_of(reply_values(id=value), {})


@pytest.mark.parametrize("value", [None, -1.0, float("nan"), float("inf"), 1.1e7, "fast", 3])
def test_a_time_that_is_not_one_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match=rf"compute-s is {value!r}; it must be seconds, finit"):
        parts.reply_of(reply_values(compute_s=value), {})


@pytest.mark.parametrize("value", ["", 3, "float31", "complex64", ["float32"]])
def test_a_dtype_that_is_not_one_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match=r"activation-dtype is .*: dtype .* is not one that"):
        parts.reply_of(reply_values(activation_dtype=value), {})


@pytest.mark.parametrize("value", [None, "0.bias", [3], ["0.bias", None], {"0.bias": 1}])
def test_names_of_unused_parameters_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match=r"unused is .*; it must be a list of parameter names"):
        parts.reply_of(reply_values(unused=value), {})


@pytest.mark.parametrize("name", ["extra", "gradients/", "gradients", "buffers/w", "labels/x"])
def test_an_unknown_tensor_in_a_reply_is_refused(name: str) -> None:
    with pytest.raises(
        ProtocolError, match=f"the tensor '{name}'; known are activations, .*Install the same"
    ):
        parts.reply_of(reply_values(), {name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["", "activations", "gradients/w"])
def test_an_unknown_tensor_in_a_request_is_refused(name: str) -> None:
    tensors = {"gradient": torch.zeros(2, 3), name: torch.zeros(1)}
    with pytest.raises(
        ProtocolError, match=rf"a request holds the tensors \['{name}'\]; .*Install the same"
    ):
        parts.request_of(parts.request_config(BACKWARD), {}, tensors)


def test_a_request_that_breaks_a_rule_is_refused_on_arrival() -> None:
    with pytest.raises(ProtocolError, match="a forward request with a gradient"):
        parts.request_of(request_values(), WEIGHTS, {"gradient": torch.zeros(2)})
    with pytest.raises(ProtocolError, match="a backward request without a gradient"):
        parts.request_of(parts.request_config(BACKWARD), {}, {})


@pytest.mark.parametrize("name", ["version", "client-key", "num-examples", "num-test-examples"])
@pytest.mark.parametrize("value", ["x", None, 1.0, True])
def test_a_number_that_is_not_one_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=rf"{name} is {value!r}; it must be an integer"):
        parts.description_of(description_values(**{name: value}))


@pytest.mark.parametrize(
    "segment",
    [
        None,
        "not json",
        "[]",
        "null",
        json.dumps({"w": 3}),
        json.dumps({"w": [[2], "float32"]}),
        json.dumps({"w": [["two"], "float32", True]}),
        json.dumps({"w": [3, "float32", True]}),
        json.dumps({"w": ["2", "float32", True]}),
        json.dumps({"w": [[2.0], "float32", True]}),
        json.dumps({"w": [[float("inf")], "float32", True]}),
        json.dumps({"w": [[-2], "float32", True]}),
        json.dumps({"w": [[1] * 17, "float32", True]}),
        json.dumps({"w": [[2], "float32", 1]}),
        json.dumps({"w": [[2], 32, True]}),
        "[" * 100_000,
        json.dumps({"w" * 1_000_000: [[2], "float32", True]}),
    ],
)
def test_a_segment_that_is_not_a_table_is_refused(segment: str | None) -> None:
    with pytest.raises(ProtocolError, match=r"segment is not a table of names.*install the same"):
        parts.description_of(description_values(segment=segment))


def test_a_description_of_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="the device speaks protocol 1"):
        parts.description_of(description_values(version=1))
