"""What is said: typed requests and replies, tensors, encodings.

`flower_psl.wire.records` turns them into Flower's records and is imported only where
messages travel, so that nothing else needs flwr.
"""

from flower_psl.wire.describe import (
    PROTOCOL_VERSION,
    DescribeReply,
    TensorSpec,
    differences,
    segment_spec,
)
from flower_psl.wire.step import (
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_batch,
    check_belongs,
    check_gradients,
)

__all__ = [
    "PROTOCOL_VERSION",
    "DescribeReply",
    "Phase",
    "StepId",
    "StepReply",
    "StepRequest",
    "TensorSpec",
    "check_batch",
    "check_belongs",
    "check_gradients",
    "differences",
    "segment_spec",
]
