from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    summary = quick("stragglers")
    slow, fast = (
        {"seconds_per_example": tau, "seconds_per_participation": 0.0} for tau in (0.1, 0.01)
    )
    assert summary["costs"]["compute"] == {
        str(k): slow if k in (4, 9) else fast for k in range(10)
    }
    assert set(summary["costs"]) == {"compute", "latency"}
    found = {(row["regime"], row["method"]): row for row in summary["table"]}
    assert len(found) == 12
    for (regime, method), row in found.items():
        assert row["reached"] == 2
        assert row["accuracy"] > 90
        assert row["least_s"] == found[regime, "gpsl"]["least_s"]
        if not method.startswith("quota"):
            assert row["round_s"] >= row["least_s"] - 1e-9
    assert found["compute", "quota:0.5"]["round_s"] < found["compute", "quota:0.5"]["least_s"]
    assert found["compute", "balanced"]["round_s"] < found["compute", "gpsl"]["round_s"]
    # Where latency dominates, a round takes phi + (1 - phi) * 0.1 of GPSL's time.
    latency = {method: row for (regime, method), row in found.items() if regime == "latency"}
    for share in (0.7, 0.4):
        part = latency[f"straggler:{share}"]["round_s"] / latency["gpsl"]["round_s"]
        assert part == pytest.approx(share + (1 - share) / 10, abs=0.05)
    assert latency["straggler:0.4"]["target_s"] < latency["gpsl"]["target_s"]
    assert latency["straggler:0.4"]["deviation"] > latency["gpsl"]["deviation"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--alpha", "-1"], ["alpha is -1.0", "above 0", "give for instance"]),
        (["--target", "1.5"], ["target is 1.5", "(0, 1]"]),
        (["--clients", "0"], ["clients is 0", "1 or more"]),
        (["--cost-file", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_bad_input_is_refused(
    options: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stragglers", "--quick", "--out", str(tmp_path / "out"), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_a_cost_model_of_other_clients_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.csv"
    rows = "".join(f"{key},0.1,1\n" for key in range(9))
    costs.write_text(f"client,seconds_per_example,seconds_per_participation\n{rows}")
    assert main(["stragglers", "--quick", "--cost-file", str(costs)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no cost for the clients 9" in line
    assert "add them" in line
