"""How tensors are made smaller on their way, independently of what carries them."""

from flower_psl.wire.encodings.encoding import Encoding
from flower_psl.wire.encodings.encodings import ENCODINGS, Encodings
from flower_psl.wire.encodings.values import (
    EncodedBatch,
    decode_batch,
    decode_parameters,
    encode_batch,
    encode_parameters,
)

__all__ = [
    "ENCODINGS",
    "EncodedBatch",
    "Encoding",
    "Encodings",
    "decode_batch",
    "decode_parameters",
    "encode_batch",
    "encode_parameters",
]
