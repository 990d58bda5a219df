"""Which of a device's own examples make its part of a step."""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flower_psl.client.batch_source import BatchSource
from flower_psl.errors import ProtocolError
from flower_psl.sampling import Purpose, derive_seed, generator
from flower_psl.split import Inputs, seeded
from flower_psl.wire import StepId


class Batch(NamedTuple):
    """The examples of one step, and the seed of what a segment draws with them."""

    id: StepId
    inputs: Inputs
    labels: Tensor
    seed: int


class OwnExamples:
    """A device's training and test data, in the order in which a run takes them.

    Parameters
    ----------
    train : BatchSource
        The training data.
    test : BatchSource or None
        The test data.
    device : torch.device
        Where batches go.
    """

    def __init__(self, train: BatchSource, test: BatchSource | None, device: torch.device) -> None:
        self.train, self.test = train, test
        self._device = device
        self._ahead: Batch | None = None
        self._permutation: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    def prepare(self, step: StepId) -> None:
        """Load the batch of a training step before it is asked for.

        Raises
        ------
        ProtocolError
            As `load`.
        """
        self._ahead = self.load(step)

    def take(self, step: StepId, *, training: bool) -> Batch:
        """Return the batch of a step, which may have been loaded ahead."""
        if training and self._ahead is not None and self._ahead.id == step:
            ahead, self._ahead = self._ahead, None
            return ahead
        return self.load(step, training=training)

    def load(self, step: StepId, *, training: bool = True) -> Batch:
        """Return the examples of a step.

        Raises
        ------
        ProtocolError
            If the device does not have them.
        """
        source = self.train if training else self.test
        count = 0 if source is None else len(source)
        turn, first = divmod(step.start, max(count, 1)) if training else (0, step.start)
        end = first + step.batch_size
        if source is None or end > count:
            raise ProtocolError(
                f"{step}: examples {first} to {end} were asked for, of {count} in the "
                f"{'training' if training else 'test'} data. The data set must keep its size "
                "during a run."
            )
        order = self._order(step.seed, turn + 1, step.client_key) if training else range(count)
        # Augmentation and the segment's random layers have streams of their own, so that
        # neither depends on how much the other draws.
        with (
            nullcontext()
            if source.is_tensors
            else seeded(derive_seed(step.seed, Purpose.CLIENT_DATA, *step.position))
        ):
            inputs, labels = source.batch(order[first:end], self._device)
        seed = derive_seed(step.seed, Purpose.CLIENT_FORWARD, *step.position)
        return Batch(step, inputs, labels, seed)

    def _order(self, *position: int) -> NDArray[np.int64]:
        """Return the permutation of one pass: of a seed, the pass from 1, and a client key."""
        if self._permutation is None or self._permutation[0] != position:
            seed, turn, client_key = position
            draws = generator(seed, Purpose.PERMUTATION, turn, client_key)
            self._permutation = ((seed, turn, client_key), draws.permutation(len(self.train)))
        return self._permutation[1]
