"""Bounds on the size of what a client sends."""

from collections.abc import Iterable

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError


def check_activation_norm(where: object, activations: Tensor, bound: float | None) -> None:
    """Refuse activations of which an example's Euclidean norm is above a bound.

    Parameters
    ----------
    where : object
        Client, round and step, as text for the message.
    activations : Tensor
        ``(b_k, ...)``.
    bound : float or None
        None is no bound.

    Raises
    ------
    ProtocolError
        If one is.
    """
    if bound is not None:
        norms = torch.linalg.vector_norm(activations.reshape(len(activations), -1).double(), dim=1)
        _check(f"{where}: an example's activations have", float(norms.max()), "activation", bound)


def check_update_norm(where: object, update: Iterable[Tensor], bound: float | None) -> None:
    """Refuse what a client adds to an update if its Euclidean norm is above a bound.

    Parameters
    ----------
    where : object
        Client, round and step, as text for the message.
    update : iterable of Tensor
        Its parts, of any shape.
    bound : float or None
        None is no bound.

    Raises
    ------
    ProtocolError
        If it is.
    """
    if bound is not None:
        squares = [torch.linalg.vector_norm(part.double()).square() for part in update]
        norm = float(sum(squares)) ** 0.5
        _check(f"{where}: what it adds to the update has", norm, "update", bound)


def _check(what: str, norm: float, kind: str, bound: float) -> None:
    if norm > bound:
        raise ProtocolError(
            f"{what} the norm {norm:.4g}; FailurePolicy.max_{kind}_norm is {bound:g}. Look at "
            "this client's inputs, or raise the bound if the others come near it too."
        )
