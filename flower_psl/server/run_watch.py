"""What happens beside training: records, lines in the log and checkpoints."""

from dataclasses import dataclass

from flower_psl.server.checkpoints.saving import Saving
from flower_psl.telemetry import Progress, RunRecorder, StepRecord


@dataclass(frozen=True)
class RunWatch:
    """Is told of every step.

    Attributes
    ----------
    recorder : RunRecorder or None
        Writes down what came of it.
    progress : Progress
        Tells how far the run has come.
    saving : Saving
        Saves the run.
    """

    recorder: RunRecorder | None
    progress: Progress
    saving: Saving

    def on_step(self, record: StepRecord) -> None:
        """Write down a step that was taken."""
        if self.recorder is not None:
            self.recorder.record_step(record)
        self.progress.step(record.step, record.loss)

    def between_steps(self) -> None:
        """Save the run after a step that was taken, if it is time."""
        self.saving.between_steps()
