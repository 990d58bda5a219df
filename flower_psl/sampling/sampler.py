"""What every sampler is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from flower_psl.sampling.schedule import BatchSchedule


class Sampler(ABC):
    """Decides how many examples each client contributes to each step of a round.

    A sampler is immutable and keeps nothing from round to round. A sampler of your own
    subclasses this class and usually returns `BatchSchedule.from_steps(...)`.

    Attributes
    ----------
    name : str
        What tables and plots call it.
    """

    name: ClassVar[str] = "custom"

    @abstractmethod
    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        """Return the batch-size schedule of one round.

        The result depends on the sampler's arguments, `server_round` and the content of
        `num_examples` only: not on the order of the mapping, nor on earlier calls.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to number of examples. Clients with 0 examples take no part.
        server_round : int
            The round, at least 0.

        Returns
        -------
        BatchSchedule
            Client keys and batch sizes of every step.

        Raises
        ------
        ConfigError
            If the numbers are invalid, nobody has data, or the data cannot fill a batch.
        """

    def details(self, num_examples: Mapping[int, int]) -> dict[str, object]:
        """Return what the records of a run must say of the sampler beside its name.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to number of examples.

        Returns
        -------
        dict of str to object
            Ready for ``json.dumps``; empty unless a sampler says otherwise.
        """
        return {}
