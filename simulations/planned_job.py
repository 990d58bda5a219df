"""What jobs share that plan with a sampler."""

from abc import ABC, abstractmethod

from flower_psl import Sampler
from simulations.samplers import build_sampler, every_fifth


class PlannedJob(ABC):
    """A job of one sampler and one partition; the fields are those of its subclasses."""

    method: str
    clients: int
    batch_size: int
    seed: int

    @abstractmethod
    def num_examples(self) -> dict[int, int]:
        """Return the number of examples of each client."""

    def sampler(self) -> Sampler:
        """Return the sampler of this job's method."""
        return build_sampler(
            self.method,
            batch_size=self.batch_size,
            seed=self.seed,
            slow=every_fifth(self.clients),
        )

    def check(self) -> None:
        """Refuse, before any work, what cannot be planned."""
        self.sampler().schedule(self.num_examples(), 1)
