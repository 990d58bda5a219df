"""The steps of a round, drawn anew when clients leave or come back."""

from collections.abc import Mapping
from functools import partial

from flower_psl.errors import ConfigError
from flower_psl.sampling import BatchSchedule, Sampler
from flower_psl.server.ledger import Ledger
from flower_psl.server.step_plan import FIRST_PLAN, StepPlan


class RoundPlan:
    """Says what the next step of a round is.

    The first plan of a round is drawn over the data of all clients, whoever is there. When
    somebody leaves or comes back, another is drawn over what those who are there have left.
    Where the round has come to is in the ledger alone.

    Parameters
    ----------
    sampler : Sampler
        Draws the plans.
    num_examples : mapping of int to int
        Examples by client key.
    ledger : Ledger
        What has happened so far.
    steps_per_round : int or None
        Bound on the steps of a round.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_examples: Mapping[int, int],
        ledger: Ledger,
        steps_per_round: int | None,
    ) -> None:
        self._sampler = sampler
        self._num_examples = num_examples
        self._ledger = ledger
        self._steps_per_round = steps_per_round
        self._schedule: BatchSchedule | None = None
        self._cached: dict[int, Mapping[int, int]] = {}

    @property
    def num_steps(self) -> int:
        """Steps of the round, if the plan is followed to its end."""
        planned = self._ledger.plan_step + len(self._schedule or ())
        return min(planned, self._steps_per_round or planned)

    def start_round(self, server_round: int) -> None:
        """Draw the first plan of a round, and another if somebody is out.

        Raises
        ------
        ConfigError
            If the sampler makes something else than a schedule of these clients.
        """
        schedule = self._first(server_round)
        # Unless the sampler says where a round begins, each round is a pass.
        passed = {key: (server_round - 1) * count for key, count in self._num_examples.items()}
        shares = dict.fromkeys(passed, 0) | schedule.available
        self._ledger.start_round(server_round, passed | (schedule.starts or {}), shares)
        self._follow(schedule)
        if self._ledger.out:
            self.redraw()

    def redraw(self) -> None:
        """Draw another plan, over what those who are there have left.

        Raises
        ------
        ConfigError
            If the sampler's schedule asks for more than is left.
        """
        self._ledger.start_plan()
        self._follow(self._again())

    def resume(self) -> None:
        """Draw the plan that the ledger says is followed.

        Raises
        ------
        ConfigError
            As the other methods.
        """
        first = self._ledger.plan == FIRST_PLAN
        self._follow(self._first(self._ledger.server_round) if first else self._again())

    def next_steps(self) -> tuple[StepPlan | None, StepPlan | None]:
        """Return the next step and the one after it, as far as there are any."""
        ledger = self._ledger
        sizes, later = (self._batch_sizes(step) for step in (ledger.step, ledger.step + 1))
        starts = {key: ledger.position(key) for key in {**sizes, **later}}
        step = self._step(ledger.step + 1, sizes, starts)
        starts |= {key: starts[key] + size for key, size in sizes.items()}
        return step, self._step(ledger.step + 2, later, starts)

    def _step(
        self, step: int, batch_sizes: Mapping[int, int], starts: Mapping[int, int]
    ) -> StepPlan | None:
        if not batch_sizes:
            return None
        return StepPlan(
            server_round=self._ledger.server_round,
            step=step,
            batch_sizes=batch_sizes,
            starts={key: starts[key] for key in batch_sizes},
            plan=self._ledger.plan,
        )

    def _batch_sizes(self, step: int) -> Mapping[int, int]:
        """Return the batch sizes of a step, counted from 0; of none, if the round has ended."""
        if self._schedule is None or step >= self.num_steps:
            return {}
        if step not in self._cached:
            self._cached = {step: self._schedule[step - self._ledger.plan_step]}
        return self._cached[step]

    def _follow(self, schedule: BatchSchedule | None) -> None:
        self._schedule, self._cached = schedule, {}

    def _first(self, server_round: int) -> BatchSchedule:
        schedule = self._sampler.schedule(self._num_examples, server_round)
        where = f"the sampler's schedule for round {server_round}"
        if not isinstance(schedule, BatchSchedule):
            raise ConfigError(
                f"{where} is a {type(schedule).__name__}; it must be a BatchSchedule, such as "
                "BatchSchedule.from_steps(steps, num_examples) makes"
            )
        if unknown := [key for key in schedule.client_keys if key not in self._num_examples]:
            raise ConfigError(
                f"{where} names the clients {unknown}; the run has {list(self._num_examples)}. "
                "Use only the keys that the sampler is given."
            )
        return schedule

    def _again(self) -> BatchSchedule | None:
        ledger = self._ledger
        # A sampler needs a method schedule, and no more.
        replan = getattr(self._sampler, "replan", None) or partial(Sampler.replan, self._sampler)
        schedule: BatchSchedule | None = replan(ledger.pool, ledger.server_round, ledger.plan)
        totals = {} if schedule is None else schedule.totals
        for key, count in totals.items():
            if count > ledger.pool.get(key, 0):
                raise ConfigError(
                    f"plan {ledger.plan} of round {ledger.server_round}, drawn after clients left "
                    f"or came back, asks client {key} for {count} examples; it has "
                    f"{ledger.pool.get(key, 0)} left. Let the sampler's schedule depend on the "
                    "numbers of examples that it is given."
                )
        return schedule
