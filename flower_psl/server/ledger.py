"""What changes in a run besides tensors: who is there, and which examples were used."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """The state of a run in plain numbers: with it and the tensors a run can go on.

    Every mapping is by client key.

    Attributes
    ----------
    server_round, step : int
        The round, from 1, and its accepted steps so far.
    plan, plan_step : int
        The number of the plan that is followed, from 0 in every round, and the round's accepted
        steps when it was drawn.
    pool : dict of int to int
        The examples that the plan was drawn over.
    starts, shares : dict of int to int
        Where the round began in each client's passes through its data, and how many examples
        it may give in the round.
    used : dict of int to int
        Examples that it gave to accepted steps of the round.
    redraws : int
        How often the step that is tried was discarded so far.
    failed : dict of int to str
        What clients did in these attempts.
    loss_sum : float
        The losses of the round's accepted steps, each times its examples.
    redrawn : int
        Examples of the round's discarded steps, each as often as it was discarded.
    discarded_bytes_up, discarded_bytes_down : int
        What travelled for these steps.
    accepted_steps : int
        Accepted steps of the run.
    out : dict of int to str
        Who is left out now, and why.
    rests_until : dict of int to int
        The number of accepted steps before which a client is not taken back.
    in_a_row : dict of int to int
        How often a client has failed since it last took part in an accepted step.
    offences : dict of int to int
        How often it has sent values that cannot be used.
    failures : dict of int to dict of str to int
        How often it has failed in the run, by reason.
    """

    server_round: int = 0
    step: int = 0
    plan: int = 0
    plan_step: int = 0
    pool: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    shares: dict[int, int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    redraws: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    loss_sum: float = 0.0
    redrawn: int = 0
    discarded_bytes_up: int = 0
    discarded_bytes_down: int = 0
    accepted_steps: int = 0
    out: dict[int, str] = field(default_factory=dict)
    rests_until: dict[int, int] = field(default_factory=dict)
    in_a_row: dict[int, int] = field(default_factory=dict)
    offences: dict[int, int] = field(default_factory=dict)
    failures: dict[int, dict[str, int]] = field(default_factory=dict)

    def start_round(
        self, server_round: int, starts: Mapping[int, int], shares: Mapping[int, int]
    ) -> None:
        """Begin a round."""
        self.server_round, self.step, self.plan, self.plan_step = server_round, 0, 0, 0
        self.starts, self.shares, self.pool = dict(starts), dict(shares), dict(shares)
        self.used, self.loss_sum = dict.fromkeys(shares, 0), 0.0
        self.redrawn = self.discarded_bytes_up = self.discarded_bytes_down = 0

    def start_plan(self) -> None:
        """Begin another plan of the round, over what those who are there have left."""
        self.plan += 1
        self.plan_step = self.step
        self.pool = {
            key: 0 if key in self.out else share - self.used[key]
            for key, share in self.shares.items()
        }

    def end_rests(self) -> None:
        """Let everybody who is out be asked at once: between two starts, devices are mended."""
        self.rests_until, self.in_a_row = {}, {}

    def position(self, key: int) -> int:
        """Return where a client is in its passes through its data."""
        return self.starts[key] + self.used[key]

    def accept(self, batch_sizes: Mapping[int, int], loss: float) -> None:
        """Count a step that was taken, with the examples that were there."""
        self.step += 1
        self.accepted_steps += 1
        self.redraws, self.failed = 0, {}
        self.loss_sum += loss * sum(batch_sizes.values())
        for key, batch_size in batch_sizes.items():
            self.used[key] += batch_size
            self.in_a_row.pop(key, None)

    def discard(self, num_examples: int, bytes_up: int, bytes_down: int) -> None:
        """Count a step that was not taken; its examples stay where they were."""
        self.redrawn += num_examples
        self.discarded_bytes_up += bytes_up
        self.discarded_bytes_down += bytes_down

    @property
    def plan_is_stale(self) -> bool:
        """Whether the plan asks somebody who is out by now."""
        return any(self.pool.get(key) for key in self.out)
