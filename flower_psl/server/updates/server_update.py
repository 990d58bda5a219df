"""How the server segment learns from one step, where clients update theirs by themselves."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flower_psl.errors import PslError
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.kept_buffers import kept_buffers
from flower_psl.server.learner import Learner
from flower_psl.server.loss_normalizer import loss_normalizer
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.torn import TornError
from flower_psl.split import LossFn
from flower_psl.storage import State


class ServerTurn(NamedTuple):
    """What the server's part of a step came to.

    Attributes
    ----------
    loss : float
        The loss over the global batch.
    cut_gradients : list of Tensor
        For each client, in client order, the gradient of its *own* loss by its activations.
    normalizers : list of float
        For each client, in client order, what its own loss is divided by: its weight in a mean.
    failures : dict of int to PslError
        The clients, by key, whose part could not be computed, while others' updates are made:
        nothing was learned from it.
    """

    loss: float
    cut_gradients: list[Tensor]
    normalizers: list[float]
    failures: Mapping[int, PslError] = MappingProxyType({})


class ServerUpdate(Protocol):
    """A way to update the server segment."""

    def run(
        self, plan: StepPlan, activations: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> ServerTurn:
        """Take the server's part of a step.

        Parameters
        ----------
        plan : StepPlan
            The step.
        activations, labels : sequence of Tensor
            ``(b_k, ...)`` of each client, in client order.

        Raises
        ------
        DiscardedError
            If there is no update because of what clients sent.
        PslError
            If there is none for another reason.
        TornError
            If there is a part of one.
        """

    def end_round(self) -> None:
        """Bring the server segment to its state between rounds."""

    def state(self) -> State:
        """Return what is kept from step to step beside the learner's own state."""

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned."""


def part_update(
    forward: ServerForward,
    learner: Learner,
    plan: StepPlan,
    key: int,
    activations: Tensor,
    labels: Tensor,
    *,
    is_first: bool,
) -> tuple[Tensor, float]:
    """Update a server segment from one client's part; return its cut gradient and loss.

    Raises
    ------
    DiscardedError
        If the client's loss is not finite; the segment is then as it was.
    PslError
        If there is no loss for another reason, and this is the first part of the step.
    TornError
        If it is not: the updates of other parts are made.
    """
    learner.start_step()
    try:
        with kept_buffers(learner.server):
            passed = forward.run_part(learner.server, plan, key, activations, labels)
    except PslError as error:
        if is_first:
            raise
        raise TornError(error) from error
    [gradient] = passed.backward()
    learner.take_step()
    return gradient, float(passed.loss.detach())


def turn_of_parts(
    loss_fn: LossFn,
    labels: Mapping[int, Tensor],
    losses: Mapping[int, float],
    cut_gradients: list[Tensor],
    normalizers: list[float],
    failures: Mapping[int, PslError],
) -> ServerTurn:
    """Return a turn in which each client's part was an update of its own.

    Parameters
    ----------
    loss_fn : callable
        The loss.
    labels : mapping of int to Tensor
        Labels by client key, in client order.
    losses : mapping of int to float
        The loss of each part that was computed, by its place in client order.
    cut_gradients, normalizers : list
        As for `ServerTurn`.
    failures : mapping of int to PslError
        Of the parts that were not computed.

    Raises
    ------
    DiscardedError
        If none was.
    """
    there = [part for key, part in labels.items() if key not in failures]
    if not there:
        raise DiscardedError(failures)
    whole = loss_normalizer(loss_fn, torch.cat(there))
    loss = sum((normalizers[place] / whole * part for place, part in losses.items()), start=0.0)
    return ServerTurn(loss, cut_gradients, normalizers, failures)
