"""Processes of devices that are killed in mid-step, in a real deployment."""

import math
from pathlib import Path

import pytest

from simulations.chaos import ChaosSettings, run_chaos

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_a_run_goes_on_without_killed_devices_and_takes_them_back(tmp_path: Path) -> None:
    settings = ChaosSettings(out=tmp_path, moments=3)
    result = run_chaos(settings)
    assert len(result.aftermaths) == 3
    for each in result.aftermaths:
        assert each.gap_s <= settings.step_timeout_s + 5
        assert math.isfinite(each.away_s)
    assert result.accuracy == pytest.approx(result.undisturbed_accuracy, abs=0.01)
