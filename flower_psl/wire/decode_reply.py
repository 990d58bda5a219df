"""A reply with the values that the client had before it encoded them."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from flower_psl.wire.encodings import EncodedBatch, Encodings, decode_batch, decode_parameters
from flower_psl.wire.step import StepReply

_RAW = Encodings()


def decode_reply(
    reply: StepReply, encodings: Encodings, parameters: Mapping[str, Tensor]
) -> StepReply:
    """Return a reply with its activations or gradients decoded.

    Parameters
    ----------
    reply : StepReply
        The reply, as it travelled. Where nothing is encoded it is returned itself.
    encodings : Encodings
        Those of the request.
    parameters : mapping of str to Tensor
        The client segment's trainable parameters.

    Raises
    ------
    ProtocolError
        If a tensor is not what its encoding makes.
    """
    if encodings == _RAW and not reply.extras:
        return reply
    where, activations = reply.id, reply.activations
    if activations is not None:
        activations = decode_batch(
            "activations",
            EncodedBatch(activations, reply.extras),
            encodings.activations,
            reply.activation_dtype,
            where,
        )
    return replace(
        reply,
        activations=activations,
        extras={},
        gradients=decode_parameters(reply.gradients, encodings.gradients, parameters, where),
    )
