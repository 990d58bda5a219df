"""The numbers of a whole run, gathered record by record."""

from collections.abc import Mapping

from flower_psl.telemetry.records import RoundRecord, RunInfo, StepRecord
from flower_psl.telemetry.versions import versions

# What is known when the run starts, but read last.
_AT_THE_END = ("transport", "seed", "sampler_details")


class RunSummary:
    """Add up a run's records; steps are counted, not kept, so that memory stays small.

    Parameters
    ----------
    info : RunInfo
        What is known when the run starts.

    Attributes
    ----------
    rounds : list of RoundRecord
        The rounds added so far.
    first_schedule : list of Mapping of int to int
        The first round's batch sizes: a step each, by client key.
    """

    def __init__(self, info: RunInfo) -> None:
        self.rounds: list[RoundRecord] = []
        self.first_schedule: list[Mapping[int, int]] = []
        self._info = info
        self._first_round: int | None = None
        self._steps = 0
        self._examples = 0
        self._step_seconds = 0.0
        self._bytes_up = 0
        self._bytes_down = 0

    def add_step(self, record: StepRecord) -> None:
        """Count a step.

        Parameters
        ----------
        record : StepRecord
            The step.
        """
        if self._first_round is None:
            self._first_round = record.server_round
        if record.server_round == self._first_round:
            self.first_schedule.append(dict(record.clients))
        self._steps += 1
        self._examples += int(record.effective_batch_size)
        self._step_seconds += float(record.seconds["total"])
        self._bytes_up += int(record.bytes_up)
        self._bytes_down += int(record.bytes_down)

    def add_round(self, record: RoundRecord) -> None:
        """Count a round.

        Parameters
        ----------
        record : RoundRecord
            The round.
        """
        self.rounds.append(record)
        self._bytes_up += record.bytes_up
        self._bytes_down += record.bytes_down

    def to_json(
        self,
        seconds: float,
        refused: Mapping[str, int] | None = None,
        failures: Mapping[int, Mapping[str, int]] | None = None,
    ) -> dict[str, object]:
        """Return what ``summary.json`` holds.

        The final accuracy and loss are those of the last round that was evaluated; what
        was never evaluated, or has no step to be a mean of, is None.

        Parameters
        ----------
        seconds : float
            Wall time of the run, in seconds.
        refused : Mapping of str to int, optional
            How often the transport refused something, by reason.
        failures : Mapping of int to Mapping of str to int, optional
            How often each client failed, by client key and reason. If any did, ``inclusion`` is
            the mean over the rounds of the share of each client's examples that was used.

        Returns
        -------
        dict of str to object
            In the order in which a person reads it.
        """
        accuracies = [float(r.accuracy) for r in self.rounds if r.accuracy is not None]
        losses = [float(r.loss) for r in self.rounds if r.loss is not None]
        info = self._info.to_json()
        return {
            **{name: info[name] for name in info if name not in _AT_THE_END},
            "steps": self._steps,
            "final_accuracy": accuracies[-1] if accuracies else None,
            "best_accuracy": max(accuracies, default=None),
            "final_loss": losses[-1] if losses else None,
            "accuracy_by_round": [
                None if r.accuracy is None else float(r.accuracy) for r in self.rounds
            ],
            "mean_effective_batch_size": self._examples / self._steps if self._steps else None,
            "seconds": seconds,
            "steps_per_second": self._steps / self._step_seconds if self._step_seconds else None,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "transport": info["transport"],
            "refused": dict(sorted((refused or {}).items())),
            "failures": {
                str(client): dict(sorted(reasons.items()))
                for client, reasons in sorted((failures or {}).items())
            },
            "inclusion": self._inclusion() if failures else {},
            "not_seen": sum(record.not_seen for record in self.rounds),
            "redrawn": sum(record.redrawn for record in self.rounds),
            "sampler_details": info["sampler_details"],
            "seed": info["seed"],
            "versions": versions(),
        }

    def _inclusion(self) -> dict[str, float]:
        shares = [record.inclusion for record in self.rounds if record.inclusion]
        return {
            str(client): sum(share[client] for share in shares) / len(shares)
            for client in (shares[0] if shares else ())
        }
