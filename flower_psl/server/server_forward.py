"""The server's forward pass in a step, with what can go wrong in it said plainly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError, PslError
from flower_psl.sampling import Purpose, derive_seed
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.step_plan import StepPlan
from flower_psl.split import LossFn, ModuleIndex, ServerPass, seeded, server_pass
from flower_psl.wire import is_finite


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
        self, segment: ModuleIndex, plan: StepPlan, activations: Sequence[Tensor], labels: Tensor
    ) -> ServerPass:
        """Run a segment over a global batch.

        Parameters
        ----------
        segment : ModuleIndex
            The server segment.
        plan : StepPlan
            The step.
        activations : sequence of Tensor
            ``(b_k, ...)`` of each client, in client order.
        labels : Tensor
            ``(n, ...)``.

        Raises
        ------
        DiscardedError
            If what some clients sent is the reason that there is no loss.
        PslError
            If the segment or the loss raises, or the loss is not finite, for another reason.
        """
        try:
            passed = self._pass(segment, plan, activations, labels)
        except PslError:
            raise
        except Exception as error:
            raise self.reason(segment, plan, activations, labels, error) from error
        self.check_finite(plan, passed.loss, passed.outputs, labels)
        return passed

    def reason(
        self,
        segment: ModuleIndex,
        plan: StepPlan,
        activations: Sequence[Tensor],
        labels: Tensor,
        error: Exception,
    ) -> Exception:
        """Return what to raise where the segment or the loss raised over a global batch.

        Returns
        -------
        Exception
            A DiscardedError if what some clients sent is the reason, else a PslError.
        """
        failures = self._who_raises(segment, plan, activations, labels)
        if failures and (len(failures) < len(activations) or not is_first(plan)):
            return DiscardedError(failures)
        return raised(str(plan), error, activations, labels)

    def run_part(
        self,
        segment: ModuleIndex,
        plan: StepPlan,
        client: int,
        activations: Tensor,
        labels: Tensor,
    ) -> ServerPass:
        """Run a segment over one client's part of a global batch.

        Parameters
        ----------
        segment : ModuleIndex
            The server segment.
        plan : StepPlan
            The step.
        client : int
            The client key.
        activations, labels : Tensor
            ``(b_k, ...)``.

        Raises
        ------
        DiscardedError
            If what the client sent is the reason that there is no loss.
        PslError
            If the segment or the loss raises for another reason.
        """
        where = f"client {client}, {plan}"
        try:
            passed = self._pass(segment, plan, [activations], labels, client)
        except PslError:
            raise
        except Exception as error:
            failures = self._who_raises(segment, plan.of([client]), [activations], labels)
            if failures and not is_first(plan):
                raise DiscardedError(failures) from error
            raise raised(where, error, [activations], labels) from error
        if not bool(torch.isfinite(passed.loss)):
            raise DiscardedError({client: ProtocolError(_not_finite(where, passed.loss))})
        return passed

    def _pass(
        self,
        segment: ModuleIndex,
        plan: StepPlan,
        activations: Sequence[Tensor],
        labels: Tensor,
        *client: int,
    ) -> ServerPass:
        seed = self.seed_of(plan, *client)
        return server_pass.forward(segment, activations, labels, self.loss_fn, seed=seed)

    def seed_of(self, plan: StepPlan, *client: int) -> int:
        """Return the seed of what the server draws in a step, or for one client's part of it."""
        position = (plan.server_round, plan.plan, plan.step, *client)
        return derive_seed(self.seed, Purpose.SERVER_FORWARD, *position)

    def check_finite(self, plan: StepPlan, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Refuse a loss over a global batch that is not finite.

        Raises
        ------
        DiscardedError
            If what some clients sent is the reason.
        PslError
            If there is another.
        """
        if not bool(torch.isfinite(loss)):
            if failures := self._who_is_not_finite(plan, outputs, labels):
                raise DiscardedError(failures)
            raise PslError(_not_finite(str(plan), loss))

    @torch.no_grad()
    def _who_is_not_finite(
        self, plan: StepPlan, outputs: Tensor, labels: Tensor
    ) -> dict[int, PslError]:
        """Return the clients whose outputs or loss are not finite, if those of others are."""
        sizes = list(plan.batch_sizes.values())
        parts = zip(
            plan.batch_sizes, torch.split(outputs, sizes), torch.split(labels, sizes), strict=True
        )
        with seeded(self.seed_of(plan), outputs.device):
            failures: dict[int, PslError] = {
                key: ProtocolError(
                    f"client {key}, {plan}: the server segment's outputs for its activations, or "
                    "their loss, are not finite, while those of other clients are; they may be "
                    "far too large. FailurePolicy(max_activation_norm=...) bounds them."
                )
                for key, part, target in parts
                if not is_finite(part) or self._is_infinite(part, target)
            }
        return failures if len(failures) < len(sizes) else {}

    def _is_infinite(self, outputs: Tensor, labels: Tensor) -> bool:
        """Tell whether one client's loss is; where every label is ignored, it may be NaN."""
        try:
            return bool(torch.isinf(self.loss_fn(outputs, labels)).any())
        except Exception:  # it was asked for a global batch, and may not be one for a part of it
            return False

    @torch.no_grad()
    def _who_raises(
        self, segment: ModuleIndex, plan: StepPlan, activations: Sequence[Tensor], labels: Tensor
    ) -> dict[int, PslError]:
        """Return the clients whose part alone lets the segment or the loss raise.

        In evaluation mode: in training mode BatchNorm raises for a single example.
        """
        segment.train(False)
        failures: dict[int, PslError] = {}
        targets = torch.split(labels, list(plan.batch_sizes.values()))
        for key, part, target in zip(plan.batch_sizes, activations, targets, strict=True):
            try:
                self.loss_fn(segment.module(part.clone()), target)
            except Exception as error:
                failures[key] = raised(f"client {key}, {plan}", error, [part], target)
        return failures


def is_first(plan: StepPlan) -> bool:
    """Tell whether no step was taken yet; what all clients share is then rather the reason."""
    return (plan.server_round, plan.step) == (1, 1)


def raised(
    where: str, error: Exception, activations: Sequence[Tensor], labels: Tensor
) -> ProtocolError:
    """Return an error that says what a server segment or a loss raised, and of what."""
    return ProtocolError(
        f"{where}: the server segment or the loss raised {type(error).__name__}: {error}. "
        f"It got activations {tuple(activations[0].shape[1:])} of an example and labels "
        f"{tuple(labels.shape)}; check that the model, the cut and the loss fit the data."
    )


def _not_finite(where: str, loss: Tensor) -> str:
    return (
        f"{where}: the loss is {float(loss.detach())}; it must be finite. Lower "
        "the learning rate or set max_grad_norm if training has diverged, and look for "
        "batches in which every label is ignored."
    )
