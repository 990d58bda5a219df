from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    summary = quick("deviation")
    found = {(row["method"], row["clients"]): row for row in summary["table"]}
    assert len(found) == 6
    for clients in (10, 100):
        gpsl, fpls, fls = (found[method, clients] for method in ("gpsl", "fpls", "fls"))
        # 316 steps, of which 4 are a round's short last one.
        assert gpsl["beyond_owed_%"] <= 1
        assert gpsl["beyond_owed_exact_%"] <= 9
        assert gpsl["beyond_promised_%"] <= 2
        assert fls["beyond_promised_%"] > 20
        assert fls["beyond_promised_exact_%"] > fls["beyond_promised_%"]
        assert fls["deviation"] > fpls["deviation"]
        assert fls["mean_size"] < fpls["mean_size"] < gpsl["mean_size"] <= 64
    # The law of a global batch knows neither K nor the skew.
    assert found["gpsl", 10]["deviation"] == pytest.approx(
        found["gpsl", 100]["deviation"], abs=0.01
    )


@pytest.mark.parametrize("delta", ["0", "1", "nan"])
def test_delta_is_a_probability(
    delta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deviation", "--quick", "--delta", delta, "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"delta is {float(delta)}" in line
    assert "between 0 and 1, both excluded: give for instance 0.05" in line


def test_a_batch_beyond_the_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deviation", "--quick", "--batch-size", "6000", "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "batch_size is 6000" in line
    assert "5000" in line
    assert not (tmp_path / "results.jsonl").exists()
