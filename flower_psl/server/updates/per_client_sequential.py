"""One server segment, updated by one client after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_psl.errors import PslError
from flower_psl.sampling import Purpose, generator
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.learner import Learner
from flower_psl.server.loss_normalizer import loss_normalizer
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates.server_update import ServerTurn, part_update, turn_of_parts
from flower_psl.storage import State


class PerClientSequential:
    """SplitFed version 2 (arXiv:2004.12088): one update for each client's part of a step.

    The order of the clients is drawn anew in every step. A client's gradient is that of the
    server segment as its turn finds it. A learning-rate schedule advances once a step.

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
        """Take one update a client."""
        learner, loss_fn = self._learner, self._forward.loss_fn
        keys = list(plan.batch_sizes)
        gradients = [torch.zeros_like(part) for part in activations]
        normalizers = [loss_normalizer(loss_fn, part) for part in labels]
        losses: dict[int, float] = {}
        failures: dict[int, PslError] = {}
        draws = generator(self._forward.seed, Purpose.SERVER_ORDER, plan.server_round, plan.step)
        for place in draws.permutation(len(keys)):
            if not normalizers[place]:
                continue  # every label is ignored: there is no loss
            try:
                gradients[place], losses[place] = part_update(
                    self._forward,
                    learner,
                    plan,
                    keys[place],
                    activations[place],
                    labels[place],
                    is_first=not losses,
                )
            except DiscardedError as error:
                failures |= error.failures
        turn = turn_of_parts(
            loss_fn, dict(zip(keys, labels, strict=True)), losses, gradients, normalizers, failures
        )
        learner.advance_schedule()
        return turn

    def end_round(self) -> None:
        """Do nothing: there is one segment."""

    def state(self) -> State:
        """Return nothing: all is in the learner."""
        return {}

    def load_state(self, state: State) -> None:
        """Do nothing."""
