"""Devices, and processes of them, that are killed in mid-step, in a real deployment."""

from pathlib import Path

import pytest

from simulations.chaos import ChaosSettings, chaos_problems, run_chaos

pytestmark = pytest.mark.slow(minutes=4)


@pytest.mark.timeout(1200)
def test_a_run_goes_on_without_killed_devices_and_takes_them_back(tmp_path: Path) -> None:
    settings = ChaosSettings(out=tmp_path, moments=3)
    result = run_chaos(settings)
    assert [each.kill.whole_device for each in result.aftermaths] == [False, False, True]
    assert chaos_problems(result, settings.step_timeout_s) == []
