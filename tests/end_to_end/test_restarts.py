"""A ServerApp that is killed in a real deployment, and its run started again."""

from pathlib import Path

import pytest

from simulations.restarts import RestartSettings, restart_problems, run_restarts

pytestmark = pytest.mark.slow(minutes=2)


@pytest.mark.timeout(900)
def test_a_run_whose_server_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    deaths = run_restarts(RestartSettings(out=tmp_path, moments=1))
    assert restart_problems(deaths, tmp_path / "whole", tmp_path / "killed") == []
