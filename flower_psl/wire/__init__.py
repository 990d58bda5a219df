"""What is said: typed requests and replies, tensors, encodings.

`flower_psl.wire.records` turns them into Flower's records and is imported only where
messages travel, so that nothing else needs flwr.
"""

from flower_psl.wire.check_reply import check_batch, check_gradients
from flower_psl.wire.check_weights import check_weights
from flower_psl.wire.decode_reply import decode_reply
from flower_psl.wire.describe import (
    PROTOCOL_VERSION,
    DescribeReply,
    TensorSpec,
    differences,
    segment_spec,
)
from flower_psl.wire.encodings import (
    ENCODINGS,
    EncodedBatch,
    Encodings,
    decode_batch,
    decode_parameters,
    encode_batch,
    encode_parameters,
)
from flower_psl.wire.step import (
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_belongs,
)
from flower_psl.wire.tensors import is_finite

__all__ = [
    "ENCODINGS",
    "PROTOCOL_VERSION",
    "DescribeReply",
    "EncodedBatch",
    "Encodings",
    "Phase",
    "StepId",
    "StepReply",
    "StepRequest",
    "TensorSpec",
    "check_batch",
    "check_belongs",
    "check_gradients",
    "check_weights",
    "decode_batch",
    "decode_parameters",
    "decode_reply",
    "differences",
    "encode_batch",
    "encode_parameters",
    "is_finite",
    "segment_spec",
]
