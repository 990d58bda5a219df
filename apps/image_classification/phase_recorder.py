"""The records of several phases as those of one run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from flower_psl import RoundRecord, RunInfo, RunRecorder, StepRecord


class PhaseRecorder(RunRecorder):
    """Records phase after phase, with rounds numbered through.

    To a phase it is a recorder as any other, but only `finish_run` writes the summary.

    Parameters
    ----------
    out : str or Path
        The folder.
    known : mapping of str to object
        What is known of the whole run, by the names of `RunInfo`.

    Attributes
    ----------
    rounds_before : int
        Rounds of the phases before the one that is recorded now.
    """

    def __init__(self, out: str | Path, known: Mapping[str, object]) -> None:
        super().__init__(out)
        self.rounds_before = 0
        self._summary = Path(out) / "summary.json"
        self._known = known
        self._refused: Counter[str] = Counter()
        self._failures: dict[int, Counter[str]] = {}

    def prepare(self, *, keep_steps: bool = False) -> None:
        """Prepare the folder for the first phase."""
        if not self.rounds_before:
            super().prepare(keep_steps=keep_steps)

    def start(self, info: RunInfo) -> None:
        """Start with the first phase."""
        if not self.rounds_before:
            super().start(replace(info, **self._known))  # type: ignore[arg-type]

    def record_step(self, record: StepRecord) -> None:
        """Record a step under its round of the run."""
        super().record_step(replace(record, server_round=self.rounds_before + record.server_round))

    def record_round(self, record: RoundRecord) -> None:
        """Record a round; the model that a later phase begins with is recorded already."""
        if record.server_round or not self.rounds_before:
            super().record_round(
                replace(record, server_round=self.rounds_before + record.server_round)
            )

    def finish(
        self,
        state_dict: Mapping[str, Tensor],
        refused: Mapping[str, int] | None = None,
        failures: Mapping[int, Mapping[str, int]] | None = None,
    ) -> Path:
        """Keep the counts of a phase, and return where the summary is going to be."""
        self._refused.update(refused or {})
        for client, reasons in (failures or {}).items():
            self._failures.setdefault(client, Counter()).update(reasons)
        return self._summary

    def finish_run(self, state_dict: Mapping[str, Tensor]) -> Path:
        """Do for all phases what `RunRecorder.finish` does."""
        return super().finish(state_dict, self._refused, self._failures)

    def close(self) -> None:
        """Do nothing: another phase may follow."""

    def close_run(self) -> None:
        """Do for all phases what `RunRecorder.close` does."""
        super().close()
