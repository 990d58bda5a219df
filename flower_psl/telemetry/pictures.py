"""Pictures of a run, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flower_psl.telemetry.records import RoundRecord
from flower_psl.telemetry.round_figures import accuracy_figure, loss_figure
from flower_psl.telemetry.schedule_figure import schedule_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACCURACY = "accuracy.png"
_LOSS = "loss.png"
_SCHEDULE = "schedule.png"

PICTURES = (_ACCURACY, _LOSS, _SCHEDULE)
"""The file names that `draw_rounds` and `draw_schedule` write."""


def draw_rounds(rounds: Sequence[RoundRecord], folder: Path) -> list[Path]:
    """Draw ``accuracy.png`` and ``loss.png``, by round.

    Parameters
    ----------
    rounds : Sequence of RoundRecord
        The run's rounds; values that are None are left out.
    folder : Path
        An existing folder.

    Returns
    -------
    list of Path
        The pictures written: one that would hold no value is not drawn.
    """
    return [
        *_save(accuracy_figure(rounds), folder / _ACCURACY),
        *_save(loss_figure(rounds), folder / _LOSS),
    ]


def draw_schedule(steps: Sequence[Mapping[int, int]], folder: Path) -> list[Path]:
    """Draw ``schedule.png``: what each client contributes to each step of the first round.

    Parameters
    ----------
    steps : Sequence of Mapping of int to int
        Per step, batch sizes by client key; a client that is missing contributes nothing.
    folder : Path
        An existing folder.

    Returns
    -------
    list of Path
        The picture written; none for a schedule without a step or without a client.
    """
    return _save(schedule_figure(steps), folder / _SCHEDULE)


def _save(figure: "Figure | None", path: Path) -> list[Path]:
    if figure is None:
        return []
    figure.savefig(path, format="png")
    return [path]
