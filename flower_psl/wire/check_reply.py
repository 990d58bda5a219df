"""What the tensors of a client's reply must be."""

from collections.abc import Mapping

from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.step import StepReply
from flower_psl.wire.tensors import is_finite


def check_batch(reply: StepReply) -> tuple[Tensor, Tensor]:
    """Return a reply's activations and labels, or say what is wrong with them.

    Raises
    ------
    ProtocolError
        If one is missing, the counts are not the batch size asked for, or a value is not
        finite.
    """
    where, count = reply.id, reply.id.batch_size
    if reply.activations is None or reply.labels is None:
        raise ProtocolError(
            f"{where}: a {reply.phase} reply without activations or labels; both are needed. "
            "Install the same flower-psl on the device and on the server."
        )
    for name, tensor in (("activations", reply.activations), ("labels", reply.labels)):
        rows = len(tensor) if tensor.dim() else 0
        if rows != count:
            raise ProtocolError(
                f"{where}: {rows} {name} for a batch of {count}; the first size of what the "
                "client segment and the data set return must be the number of examples"
            )
        if name == "activations" and not tensor.is_floating_point():
            raise ProtocolError(
                f"{where}: the activations are {tensor.dtype}; gradients flow through "
                "floating-point values only. Cut behind a layer that returns those."
            )
        if not is_finite(tensor):
            raise ProtocolError(
                f"{where}: the {name} have NaN or infinite values; every value must be finite. "
                "Look at this client's inputs, or lower the learning rate if training diverged."
            )
    return reply.activations, reply.labels


def check_gradients(reply: StepReply, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a backward reply's gradients, or say what is wrong with them.

    Parameters
    ----------
    reply : StepReply
        The reply.
    parameters : mapping of str to Tensor
        The client segment's trainable parameters.

    Raises
    ------
    ProtocolError
        If a parameter has neither a gradient nor is said to be unused, a name, shape or
        dtype is not the parameter's, or a value is not finite.
    """
    if missing := sorted(set(parameters) - set(reply.gradients) - set(reply.unused)):
        raise ProtocolError(
            f"{reply.id}: no gradient for {missing}; a reply has one for each of the "
            f"{len(parameters)} trainable parameters, or names it as unused. Build the same model "
            "on both sides."
        )
    for name, gradient in reply.gradients.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise ProtocolError(
                f"{reply.id}: a gradient for {name!r}; the trainable parameters of the client "
                f"segment are {sorted(parameters)}. Build the same model on both sides."
            )
        if gradient.shape != parameter.shape or gradient.dtype != parameter.dtype:
            raise ProtocolError(
                f"{reply.id}: the gradient of {name!r} is {gradient.dtype} "
                f"{tuple(gradient.shape)}, the parameter {parameter.dtype} "
                f"{tuple(parameter.shape)}; both must agree. Build the same model on both sides."
            )
        if not is_finite(gradient):
            raise ProtocolError(
                f"{reply.id}: the gradient of {name!r} has NaN or infinite values; every value "
                "must be finite. Lower the learning rate or set max_grad_norm."
            )
    return reply.gradients
