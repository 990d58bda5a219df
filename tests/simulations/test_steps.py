from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[..., dict[str, Any]]) -> None:
    found = {(row["alpha"], row["clients"], row["method"]): row for row in quick("steps")["table"]}
    assert len(found) == 3 * 4 * 3
    for (alpha, clients, method), row in found.items():
        if method == "gpsl":
            assert (row["steps"], row["inflation"], row["largest_batch"]) == (79, 1, 128)
        assert row["steps"] == pytest.approx(row["inflation"] * 79)
        assert row["smallest_batch"] <= row["mean_batch"] <= row["largest_batch"]
        if alpha == 0.1 and clients > 4:
            assert found[alpha, clients, "fls"]["inflation"] > 2
            assert found[alpha, clients, "fpls"]["inflation"] > 1
    # More skew, more steps.
    assert found[0.1, 64, "fls"]["steps"] > found[1.0, 64, "fls"]["steps"]
    assert found[1.0, 64, "fls"]["steps"] > found[10.0, 64, "fls"]["steps"]
