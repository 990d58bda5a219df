import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.result_store import Row
from simulations.scale import growth_exponent


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    summary = quick("scale", "--workers", "2")
    rows = {(row["method"], row["clients"]): row for row in summary["table"]}
    assert [clients for _, clients in rows] == [100, 1_000, 10_000]
    for (_, clients), row in rows.items():
        assert row["examples"] == pytest.approx(50 * clients, rel=0.2)
        assert row["steps"] == -(-row["examples"] // 128)
        assert row["seconds"] > 0
        assert 0 <= row["memory_mb"] < 40
    # Two bytes an example for the schedule itself.
    largest = rows["gpsl", 10_000]
    assert largest["memory_mb"] >= 2e-6 * largest["examples"]
    assert set(summary["time_exponents"]) == {"gpsl"}
    lines = (tmp_path / "scale" / "results.jsonl").read_text().splitlines()[1:]
    assert len({json.loads(line)["key"] for line in lines}) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--clients", "1000,1"], "batch_size is 128, but all clients together have"),
        (
            ["--clients", "1001", "--batch-size", "9999999"],
            "batch_size is 9999999, but 1001 clients together have",
        ),
        (["--methods", "gpsl,straggler:0.01", "--clients", "100"], "participation is 0.01, but"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_any_plan(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "--quick", "--out", str(tmp_path / "out"), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert "choose" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_exponent_is_that_of_the_large_points(exponent: float) -> None:
    rows: list[Row] = [
        {"clients": clients, "seconds": 3e-6 * clients**exponent if clients > 1000 else 1.0}
        for clients in (100, 1000, 10_000, 100_000)
    ]
    assert growth_exponent(rows) == pytest.approx(exponent)
    assert growth_exponent(rows[:1]) is None
