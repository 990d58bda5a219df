"""One update from the whole global batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flower_psl.errors import PslError
from flower_psl.server.learner import Learner
from flower_psl.server.loss_normalizer import loss_normalizer
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates.server_update import ServerTurn
from flower_psl.split import ServerPass
from flower_psl.storage import State

# What rounding in float32, or a sum in another order, may come to.
_TOLERANCE = 1e-3


class GlobalBatch:
    """Parallel split learning: the server segment sees the global batch as one.

    The loss over the global batch weighs a client's part by its share; the gradient that a
    client gets is multiplied by the inverse of that, and so is that of its own loss.

    Parameters
    ----------
    learner : Learner
        The server segment and its optimizer.
    forward : ServerForward
        Runs it.
    """

    def __init__(self, learner: Learner, forward: ServerForward) -> None:
        self._learner = learner
        self._forward = forward

    def run(
        self, plan: StepPlan, activations: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> ServerTurn:
        """Take one step with the gradient of the loss over the global batch."""
        learner, loss_fn, every_label = self._learner, self._forward.loss_fn, torch.cat([*labels])
        learner.start_step()
        passed = self._forward.run(learner.server, plan, activations, every_label)
        whole = loss_normalizer(loss_fn, every_label)
        normalizers = [loss_normalizer(loss_fn, part) for part in labels]
        if plan.step == 1:
            self._check_additive(plan, passed, labels, [part / whole for part in normalizers])
        cut_gradients = passed.backward()
        learner.update([], [])
        return ServerTurn(
            loss=float(passed.loss.detach()),
            cut_gradients=[
                # Where every label is ignored there is no loss, and the gradient is zero.
                gradient * (whole / part) if part else gradient
                for gradient, part in zip(cut_gradients, normalizers, strict=True)
            ],
            normalizers=normalizers,
        )

    def end_round(self) -> None:
        """Do nothing: there is one segment."""

    def state(self) -> State:
        """Return nothing: all is in the learner."""
        return {}

    def load_state(self, state: State) -> None:
        """Do nothing."""

    @torch.no_grad()
    def _check_additive(
        self, plan: StepPlan, passed: ServerPass, labels: Sequence[Tensor], shares: list[float]
    ) -> None:
        """Refuse a loss that is not the mean of its parts as `loss_normalizer` weighs them."""
        outputs = torch.split(passed.outputs, [len(part) for part in labels])
        total = sum(
            share * float(self._forward.loss_fn(*part))
            for share, part in zip(shares, zip(outputs, labels, strict=True), strict=True)
            if share
        )
        loss = float(passed.loss)
        if not math.isclose(total, loss, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise PslError(
                f"{plan}: the loss over the global batch is {loss:g}, the clients' own losses "
                f"come to {total:g} by their shares; a client that updates by itself needs a "
                "loss that is a mean over examples. Give loss_fn an attribute reduction='sum' "
                "if it is a sum, or choose client_sync='step', which takes any loss."
            )
