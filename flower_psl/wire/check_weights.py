"""What a client has trained, looked at before it is aggregated."""

from collections.abc import Mapping

from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.step import StepReply
from flower_psl.wire.tensors import is_finite

# What torch's normalization layers call the buffers that are no real numbers like others: in
# evaluation the root of a negative variance is not finite, whatever the weights.
_NEVER_NEGATIVE = ("running_var", "num_batches_tracked")


def check_weights(reply: StepReply, expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return what a client has trained, or say what is wrong with it.

    Parameters
    ----------
    reply : StepReply
        A reply to a collect request.
    expected : mapping of str to Tensor
        The server's copy of the same tensors.

    Raises
    ------
    ProtocolError
        If a tensor is missing or unknown, its shape or dtype is not that of the server's
        copy, a value is not finite, or a running variance or a count is below 0.
    """
    if wrong := sorted(set(expected) ^ set(reply.weights)):
        raise ProtocolError(
            f"{reply.id}: its weights lack or add {wrong}; a client returns the {len(expected)} "
            "tensors that its training changes. Build the same model on both sides."
        )
    for name, tensor in reply.weights.items():
        own = expected[name]
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            raise ProtocolError(
                f"{reply.id}: its {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the server's "
                f"{own.dtype} {tuple(own.shape)}; both must agree. Build the same model on both "
                "sides."
            )
        if not is_finite(tensor):
            raise ProtocolError(
                f"{reply.id}: its {name!r} has NaN or infinite values; every value must be "
                "finite. Lower the learning rate of the client's optimizer."
            )
        if name.rpartition(".")[2] in _NEVER_NEGATIVE and bool((tensor < 0).any()):
            raise ProtocolError(
                f"{reply.id}: its {name!r} has the value {float(tensor.min()):.4g}; a variance or "
                "a count is 0 or more. Look at this client's code: no training makes such a value."
            )
    return reply.weights
