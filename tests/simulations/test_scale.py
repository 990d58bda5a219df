import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_exponent_is_that_of_the_large_points(exponent: float) -> None:
    rows: list[Row] = [
        {"clients": clients, "seconds": 3e-6 * clients**exponent if clients > 1000 else 1.0}
        for clients in (100, 1000, 10_000, 100_000)
    ]
    assert growth_exponent(rows) == pytest.approx(exponent)
    assert growth_exponent(rows[:1]) is None
