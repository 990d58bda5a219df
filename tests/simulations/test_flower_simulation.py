from pathlib import Path
from typing import Any

import pytest

from simulations.flower_simulation import FlowerSimulation

LATE = "Exception: The current node timed out during startup. This could happen because"


class Scripted(FlowerSimulation):
    """Plays `flwr run` by a list of how its runs end."""

    def __init__(self, *ends: tuple[str, str]) -> None:
        super().__init__(Path())
        self.ends = list(ends)

    def _flwr_run(self, *options: str, **settings: Any) -> tuple[str, str]:
        return self.ends.pop(0)


@pytest.mark.parametrize(
    ("ends", "status", "left"),
    [
        ([("finished:failed", LATE), ("finished:completed", "fine")], "finished:completed", 0),
        ([("finished:failed", LATE)] * 4, "finished:failed", 1),
        ([("finished:failed", "ConfigError"), ("unused", "")], "finished:failed", 1),
    ],
)
def test_only_what_ray_could_not_start_is_run_again(
    ends: list[tuple[str, str]], status: str, left: int
) -> None:
    simulation = Scripted(*ends)
    found, _ = simulation.run({}, num_supernodes=1, num_actors=1, timeout_s=1.0)
    assert (found, len(simulation.ends)) == (status, left)
