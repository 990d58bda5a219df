"""A job about clients that are known by their labels only: all that planning needs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.dirichlet import deal_out
from simulations.planned_job import PlannedJob

NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class LabelJob(PlannedJob):
    """One sampler and one partition of ten balanced classes.

    Attributes
    ----------
    method : str
        The sampler.
    clients, alpha : int, float
        Number of clients K, and Dirichlet concentration.
    batch_size, examples : int
        The global batch size B, and the examples D of all clients.
    seed : int
        Of the partition and of all draws.
    """

    method: str
    clients: int
    alpha: float
    batch_size: int
    examples: int
    seed: int

    def labels(self) -> dict[int, NDArray[np.int64]]:
        """Return the labels of each client's examples, by client key 0 to K - 1."""
        labels = np.arange(self.examples) % NUM_CLASSES
        draws = np.random.default_rng([self.seed, self.clients])
        parts = deal_out(labels, self.clients, self.alpha, draws)
        return {key: labels[part] for key, part in enumerate(parts)}

    def num_examples(self) -> dict[int, int]:
        """Return the number of examples of each client."""
        return {key: len(labels) for key, labels in self.labels().items()}
