"""What happened in a run: one record a step, one summary a run, and pictures of both."""

from flower_psl.telemetry.pictures import draw_rounds, draw_schedule
from flower_psl.telemetry.progress import Progress
from flower_psl.telemetry.records import RoundRecord, RunInfo, StepRecord
from flower_psl.telemetry.run_recorder import RunRecorder
from flower_psl.telemetry.versions import versions

__all__ = [
    "Progress",
    "RoundRecord",
    "RunInfo",
    "RunRecorder",
    "StepRecord",
    "draw_rounds",
    "draw_schedule",
    "versions",
]
