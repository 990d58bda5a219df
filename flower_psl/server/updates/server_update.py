"""How the server segment learns from one step, where clients update theirs by themselves."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from flower_psl.server.step_plan import StepPlan


class ServerTurn(NamedTuple):
    """What the server's part of a step came to.

    Attributes
    ----------
    loss : float
        The loss over the global batch.
    cut_gradients : list of Tensor
        For each client, in client order, the gradient of its *own* loss by its activations.
    """

    loss: float
    cut_gradients: list[Tensor]


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
        PslError
            If the segment or the loss raises, or a loss is not finite.
        """

    def end_round(self) -> None:
        """Bring the server segment to its state between rounds."""
