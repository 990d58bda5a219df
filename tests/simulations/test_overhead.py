from collections.abc import Callable
from typing import Any

import pytest

from simulations.overhead import PHASES


@pytest.mark.slow
def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    rows = quick("overhead")["table"]
    assert [row["clients"] for row in rows] == [1, 8, 64]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["step_ms"] / row["plain_ms"])
        assert row["fused_ratio"] == pytest.approx(row["fused_ms"] / row["plain_ms"])
        phases = {name: row[f"{name}_ms"] for name in PHASES}
        assert min(phases.values()) >= 0
        # Medians do not add up exactly.
        assert sum(phases.values()) == pytest.approx(row["step_ms"], rel=0.5)
        assert max(phases, key=lambda name: phases[name]) in ("clients", "server")
