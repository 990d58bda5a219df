"""The tensors of a request with the values that the server had before it encoded them."""

from collections.abc import Mapping

from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire import EncodedBatch, StepRequest, decode_batch, decode_parameters


def decode_weights(request: StepRequest, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a request's weights.

    Parameters
    ----------
    request : StepRequest
        The request.
    like : mapping of str to Tensor
        The segment's parameters and buffers.

    Raises
    ------
    ProtocolError
        If one is missing, is not what its encoding makes, or its shape or dtype is not that
        of the segment's.
    """
    if missing := [name for name in like if name not in request.weights]:
        raise ProtocolError(
            f"{request.id}: a forward request without the weights {missing}; it must "
            f"bring all {len(like)} parameters and buffers of the segment. Build the same "
            "model on both sides."
        )
    weights = decode_parameters(request.weights, request.encodings.weights, like, request.id)
    for name, own in like.items():
        weight = weights[name]
        if weight.shape != own.shape or weight.dtype != own.dtype:
            raise ProtocolError(
                f"{request.id}: {name!r} travelled as {weight.dtype} {tuple(weight.shape)}; here "
                f"it is {own.dtype} {tuple(own.shape)}. Build the same model on both sides."
            )
    return weights


def decode_gradient(request: StepRequest, activations: Tensor) -> Tensor:
    """Return a request's cut gradient, on the device of the activations that it is of.

    Raises
    ------
    ProtocolError
        If it does not belong to the activations, or is not what its encoding makes.
    """
    gradient = request.gradient
    if gradient is None or gradient.shape != activations.shape:
        shape = None if gradient is None else tuple(gradient.shape)
        raise ProtocolError(
            f"{request.settles}: a cut gradient of shape {shape} for activations of shape "
            f"{tuple(activations.shape)}; both must agree"
        )
    return decode_batch(
        "gradient",
        EncodedBatch(gradient, request.extras),
        request.encodings.gradients,
        activations.dtype,
        request.settles,
    ).to(activations.device)
