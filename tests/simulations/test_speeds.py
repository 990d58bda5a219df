from pathlib import Path

import pytest

from flower_psl import ClientCost, ConfigError
from simulations.speeds import fingerprint, least_seconds, regimes

NUM_EXAMPLES = {0: 10, 1: 20, 2: 30, 3: 10, 4: 5}


def _costs(path: Path, seconds: float, num_clients: int = 5) -> str:
    rows = "".join(f"{key},{seconds},1\n" for key in range(num_clients))
    path.write_text(f"client,seconds_per_example,seconds_per_participation\n{rows}")
    return str(path)


def test_every_fifth_client_is_ten_times_slower() -> None:
    models = regimes("", NUM_EXAMPLES)
    assert list(models) == ["compute", "latency"]
    for cost in models.values():
        fast, slow = cost.clients[0], cost.clients[4]
        assert slow.seconds(7) == pytest.approx(10 * fast.seconds(7))
        assert [cost.clients[key] for key in range(4)] == [fast] * 4
    assert least_seconds(models["compute"], NUM_EXAMPLES) == 0.5
    assert least_seconds(models["latency"], NUM_EXAMPLES) == 0


def test_a_file_takes_their_place(tmp_path: Path) -> None:
    path = _costs(tmp_path / "lab.csv", 0.5)
    models = regimes(path, NUM_EXAMPLES)
    assert list(models) == ["lab"]
    assert models["lab"].clients[3] == ClientCost(0.5, 1.0)
    assert least_seconds(models["lab"], NUM_EXAMPLES) == 15


def test_a_file_of_other_clients_is_refused(tmp_path: Path) -> None:
    path = _costs(tmp_path / "lab.csv", 0.5, num_clients=6)
    with pytest.raises(ConfigError, match="costs for the clients 5"):
        regimes(path, NUM_EXAMPLES)


def test_the_fingerprint_is_that_of_the_costs(tmp_path: Path) -> None:
    first, same, other = (
        fingerprint(_costs(tmp_path / name, seconds))
        for name, seconds in (("a.csv", 0.5), ("b.csv", 0.5), ("c.csv", 0.25))
    )
    assert first == same != other
    assert fingerprint("") == "two-speeds"
