"""The server's forward pass in a step, with what can go wrong in it said plainly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flower_psl.errors import PslError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.server.class_labels import check_class_labels
from flower_psl.server.step_plan import FIRST_PLAN, StepPlan
from flower_psl.split import LossFn, ServerPass, server_pass


@dataclass(frozen=True, kw_only=True)
class ServerForward:
    """Runs a server segment up to the loss.

    Attributes
    ----------
    loss_fn : callable
        ``loss_fn(outputs, labels)``, a scalar.
    seed : int
        The run's seed.
    """

    loss_fn: LossFn
    seed: int

    def run(
        self,
        segment: nn.Module,
        plan: StepPlan,
        activations: Sequence[Tensor],
        labels: Tensor,
        *,
        client: int | None = None,
    ) -> ServerPass:
        """Run a segment over a global batch, or over one client's part of it.

        Parameters
        ----------
        segment : nn.Module
            The server segment.
        plan : StepPlan
            The step.
        activations : sequence of Tensor
            ``(b_k, ...)`` of each client, in client order, or of the one client.
        labels : Tensor
            ``(n, ...)``.
        client : int, optional
            The client key, if the batch is one client's part.

        Raises
        ------
        PslError
            If the segment or the loss raises, or the loss is not finite.
        """
        where, position = str(plan), [plan.server_round, FIRST_PLAN, plan.step]
        if client is not None:
            where, position = f"client {client}, {plan}", [*position, client]
            plan = replace(plan, batch_sizes={client: len(labels)})

        def checked_loss(outputs: Tensor, labels: Tensor) -> Tensor:
            check_class_labels(self.loss_fn, outputs, labels, plan.batch_sizes, str(plan))
            return self.loss_fn(outputs, labels)

        try:
            passed = server_pass.forward(
                segment,
                activations,
                labels,
                checked_loss,
                seed=derive_seed(self.seed, Purpose.SERVER_FORWARD, *position),
            )
        except PslError:
            raise
        except Exception as error:
            raise PslError(
                f"{where}: the server segment or the loss raised {type(error).__name__}: {error}. "
                f"It got activations {tuple(activations[0].shape[1:])} of an example and labels "
                f"{tuple(labels.shape)}; check that the model, the cut and the loss fit the data."
            ) from error
        if not bool(torch.isfinite(passed.loss)):
            raise PslError(
                f"{where}: the loss is {float(passed.loss.detach())}; it must be finite. Lower "
                "the learning rate or set max_grad_norm if training has diverged, and look for "
                "batches in which every label is ignored."
            )
        return passed
