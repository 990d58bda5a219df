"""The folder to copy, copied."""

import re
import shutil
from pathlib import Path

import pytest

from simulations.flower_simulation import FlowerSimulation

QUICKSTART = Path(__file__).parents[2] / "apps" / "quickstart"


@pytest.mark.slow
def test_a_copy_runs_by_itself_and_learns(tmp_path: Path) -> None:
    folder = shutil.copytree(QUICKSTART, tmp_path / "mine")
    with FlowerSimulation(folder) as simulation:
        status, log = simulation.run(
            {}, num_supernodes=5, num_actors=2, timeout_s=240.0, quiet=True
        )
    assert status == "finished:completed", log
    accuracies = [float(value) for value in re.findall(r"test accuracy ([\d.]+)", log)]
    assert len(accuracies) == 6
    assert accuracies[0] < 0.3 < 0.95 < accuracies[-1]


def test_it_is_small() -> None:
    sources = list(QUICKSTART.rglob("*.py"))
    assert {path.name for path in sources} >= {"task.py", "client_app.py", "server_app.py"}
    assert sum(len(path.read_text().splitlines()) for path in sources) < 100
