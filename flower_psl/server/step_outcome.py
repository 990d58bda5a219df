"""What came of an attempt to take a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from flower_psl.errors import PslError
from flower_psl.telemetry import StepRecord


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What came of an attempt to take a step.

    Attributes
    ----------
    record : StepRecord or None
        None if the step was discarded: nothing was updated.
    failures : mapping of int to PslError
        What the clients that failed did, by client key. A step may be taken without them.
    bytes_up, bytes_down : int
        What travelled, from the clients and to them.
    stop : PslError or None
        Why the run ends with this step, which itself is whole: the end of the round is not.
    """

    record: StepRecord | None
    failures: Mapping[int, PslError]
    bytes_up: int
    bytes_down: int
    stop: PslError | None = None
