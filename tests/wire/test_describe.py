import pytest
import torch
from torch import nn

from flower_psl import ProtocolError
from flower_psl.wire import PROTOCOL_VERSION, DescribeReply, TensorSpec, differences, segment_spec

WEIGHT = TensorSpec((2, 3), "float32", True)


def test_a_segment_is_described_by_shape_dtype_and_trainability() -> None:
    segment = nn.Sequential(nn.Linear(3, 2).double(), nn.BatchNorm1d(2))
    segment[0].bias.requires_grad_(False)
    spec = segment_spec([*segment.named_parameters(), *segment.named_buffers()])
    assert spec == {
        "0.weight": TensorSpec((2, 3), "float64", True),
        "0.bias": TensorSpec((2,), "float64", False),
        "1.weight": TensorSpec((2,), "float32", True),
        "1.bias": TensorSpec((2,), "float32", True),
        "1.running_mean": TensorSpec((2,), "float32", False),
        "1.running_var": TensorSpec((2,), "float32", False),
        "1.num_batches_tracked": TensorSpec((), "int64", False),
    }


def test_a_meta_segment_has_the_same_description() -> None:
    with torch.device("meta"):
        meta = nn.Linear(3, 2)
    assert segment_spec(meta.named_parameters()) == segment_spec(
        nn.Linear(3, 2).named_parameters()
    )


def test_a_spec_reads_well() -> None:
    assert str(WEIGHT) == "float32 (2, 3)"
    assert str(TensorSpec((), "int64", False)) == "int64 (), not trained"


def test_equal_segments_do_not_differ() -> None:
    assert differences({"weight": WEIGHT}, {"weight": TensorSpec((2, 3), "float32", True)}) == []


def test_each_difference_is_a_line() -> None:
    server = {"a": WEIGHT, "b": WEIGHT, "c": WEIGHT, "d": WEIGHT}
    device = {
        "b": TensorSpec((2, 4), "float32", True),
        "c": TensorSpec((2, 3), "float64", True),
        "d": TensorSpec((2, 3), "float32", False),
        "e": WEIGHT,
    }
    assert differences(server, device) == [
        "a is missing on the device",
        "e exists on the device only",
        "b is float32 (2, 4) on the device and float32 (2, 3) on the server",
        "c is float64 (2, 3) on the device and float32 (2, 3) on the server",
        "d is float32 (2, 3), not trained on the device and float32 (2, 3) on the server",
    ]


def test_another_protocol_is_refused() -> None:
    with pytest.raises(
        ProtocolError, match=rf"protocol 99, this server {PROTOCOL_VERSION};.*same"
    ):
        DescribeReply(client_key=0, num_examples=1, num_test_examples=0, segment={}, version=99)


@pytest.mark.parametrize(
    ("client_key", "num_examples", "num_test_examples", "text"),
    [
        (0, -1, 0, "num_examples is -1; a data set has 0 to 100000000 examples. Share a larger"),
        (0, 10**8 + 1, 0, "num_examples is 100000001; a data set has 0 to 100000000 examples"),
        (0, 1, -2, "num_test_examples is -2; a data set has 0"),
        (0, 1, 10**4000, "num_test_examples is 1000.*; a data set has 0 to"),
        (-3, 1, 0, r"client key -3; it is from 0 to 2\*\*63 - 1. Give the node such a partition"),
        (2**63, 1, 0, "client key 9223372036854775808; it is from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    client_key: int, num_examples: int, num_test_examples: int, text: str
) -> None:
    with pytest.raises(ProtocolError, match=text):
        DescribeReply(
            client_key=client_key,
            num_examples=num_examples,
            num_test_examples=num_test_examples,
            segment={},
        )
