"""What every sampler is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.streams import Purpose, derive_seed


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

    def replan(
        self, left: Mapping[int, int], server_round: int, plan: int
    ) -> BatchSchedule | None:
        """Return a schedule of what is left of a round, after clients left or came back.

        Unless a sampler says otherwise it is `schedule` of the examples left, by a sampler that
        differs in two fields, if it is a dataclass that has them: a `seed` drawn from its own,
        the round and the plan, so that nothing is drawn twice; and a `batch_size` that is not
        above the examples left. A sampler that draws at random in another way overrides this
        method.

        Parameters
        ----------
        left : Mapping[int, int]
            Client key to the number of its examples that are left in the round; 0 for a client
            that is out.
        server_round : int
            The round.
        plan : int
            Which plan of the round this is, from 1.

        Returns
        -------
        BatchSchedule or None
            None if there is nothing to plan.
        """
        total = sum(left.values())
        if not total:
            return None
        again = self
        if is_dataclass(self):
            values = {field.name: getattr(self, field.name) for field in fields(self)}
            changes: dict[str, Any] = {}
            if isinstance(seed := values.get("seed"), int):
                changes["seed"] = derive_seed(seed, Purpose.REPLAN, server_round, plan)
            if isinstance(size := values.get("batch_size"), int):
                changes["batch_size"] = min(size, total)
            again = replace(self, **changes)
        return again.schedule(left, server_round)

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
