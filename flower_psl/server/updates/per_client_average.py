"""A server segment for every client, averaged at the end of a round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_psl.errors import PslError
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.learner import Learner
from flower_psl.server.loss_normalizer import loss_normalizer
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.updates.server_update import ServerTurn, part_update, turn_of_parts
from flower_psl.server.weighted_mean import weighted_mean
from flower_psl.split import load_tensors
from flower_psl.storage import State


class PerClientAverage:
    """SplitFed version 1 (arXiv:2004.12088): each client trains with a server copy of its own.

    A copy starts each round from the server segment, with a new optimizer. At the round's
    end the segment becomes the mean of the copies that were used, weighted by what their
    clients' losses were divided by: their examples, for a plain mean.

    Parameters
    ----------
    learner : Learner
        The server segment.
    forward : ServerForward
        Runs a copy.
    """

    def __init__(self, learner: Learner, forward: ServerForward) -> None:
        self._learner = learner
        self._forward = forward
        self._copies: dict[int, Learner] = {}
        self._weights: dict[int, float] = {}

    def run(
        self, plan: StepPlan, activations: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> ServerTurn:
        """Update the copy of each client."""
        loss_fn = self._forward.loss_fn
        gradients = [torch.zeros_like(part) for part in activations]
        normalizers = [loss_normalizer(loss_fn, part) for part in labels]
        losses: dict[int, float] = {}
        failures: dict[int, PslError] = {}
        keys = list(plan.batch_sizes)
        for place, key in enumerate(keys):
            if not normalizers[place]:
                continue  # every label is ignored: there is no loss
            learner = self._copies.get(key) or self._learner.server_copy()
            try:
                gradients[place], losses[place] = part_update(
                    self._forward,
                    learner,
                    plan,
                    key,
                    activations[place],
                    labels[place],
                    is_first=not losses,
                )
            except DiscardedError as error:
                failures |= error.failures
                continue
            self._copies[key] = learner
            self._weights[key] = self._weights.get(key, 0.0) + normalizers[place]
        return turn_of_parts(
            loss_fn, dict(zip(keys, labels, strict=True)), losses, gradients, normalizers, failures
        )

    def end_round(self) -> None:
        """Average the copies into the server segment, and drop them."""
        if not self._copies:
            return
        copies = {key: learner.server.tensors for key, learner in sorted(self._copies.items())}
        mean = weighted_mean(copies, self._weights)
        segment = self._learner.server
        # What no copy has changed stays as it is, to the last bit.
        changed = {
            name
            for name, tensor in segment.tensors.items()
            if any(not torch.equal(copy[name], tensor) for copy in copies.values())
        }
        load_tensors(segment.module, {name: mean[name] for name in changed})
        self._copies, self._weights = {}, {}

    def state(self) -> State:
        """Return the copies of this round."""
        # The client segment is the learner's own, and saved with it.
        return {
            "copies": {key: {**copy.state(), "client": {}} for key, copy in self._copies.items()},
            "weights": self._weights,
        }

    def load_state(self, state: State) -> None:
        """Go on with the copies that `state` returned."""
        client = self._learner.client.tensors
        self._copies = {key: self._learner.server_copy() for key in state["copies"]}
        for key, copy in self._copies.items():
            copy.load_state({**state["copies"][key], "client": client})
        self._weights = {key: float(state["weights"][key]) for key in self._copies}
