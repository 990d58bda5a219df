"""Ten minutes of a run over the stream, in which nothing may grow."""

from pathlib import Path

import pytest

from simulations.soak import SoakSettings, run_soak

pytestmark = pytest.mark.slow(minutes=11)


@pytest.mark.timeout(3600)
def test_nothing_grows_in_ten_minutes(tmp_path: Path) -> None:
    result = run_soak(SoakSettings(out=tmp_path, minutes=10.0))
    assert [each.name for each in result.growths] == [
        *(f"ClientApp {key}" for key in range(4)),
        "ServerApp",
    ]
    for each in result.growths:
        assert each.late.resident_mb == pytest.approx(each.early.resident_mb, rel=0.05), each.name
        assert each.late.threads <= each.early.threads, each.name
        # It has no bound of its own, but nothing here keeps its threads busy for long.
        assert each.late.pool_threads <= 2 * each.early.pool_threads, each.name
        assert each.late.open_files <= each.early.open_files, each.name
