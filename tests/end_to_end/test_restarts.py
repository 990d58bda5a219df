"""A ServerApp that is killed in a real deployment, and its run started again."""

from pathlib import Path

import pytest

from simulations.restarts import NUM_DEVICES, RestartSettings, restart_problems, run_killed
from tests.end_to_end.in_process import train_in_process

pytestmark = pytest.mark.slow(minutes=2)


@pytest.mark.timeout(900)
def test_a_run_whose_server_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = RestartSettings(out=tmp_path, moments=1)
    train_in_process({**settings.run_config, "out": str(tmp_path / "whole")}, NUM_DEVICES)
    deaths = run_killed(settings)
    assert restart_problems(deaths, tmp_path / "whole", tmp_path / "killed") == []
