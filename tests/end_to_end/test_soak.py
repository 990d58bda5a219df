"""Ten minutes of a run over the stream, in which nothing may grow."""

from pathlib import Path

import pytest

from simulations.soak import SoakSettings, run_soak, soak_problems

pytestmark = pytest.mark.slow(minutes=11)


@pytest.mark.timeout(3600)
def test_nothing_grows_in_ten_minutes(tmp_path: Path) -> None:
    result = run_soak(SoakSettings(out=tmp_path, minutes=10.0))
    assert [each.name for each in result.growths] == [
        *(f"ClientApp {key}" for key in range(4)),
        "ServerApp",
    ]
    assert soak_problems(result) == []
