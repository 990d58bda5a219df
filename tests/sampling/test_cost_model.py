import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling import ClientCost, CostModel


def test_a_part_costs_so_much_a_participation_and_so_much_an_example() -> None:
    assert ClientCost(0.5, 2.0).seconds(3) == 3.5
    assert ClientCost(0.5).seconds(0) == 0.0


def test_a_model_is_a_value_in_order_of_the_keys() -> None:
    given = {2**63: ClientCost(1, 2), 4: ClientCost(0.5)}
    model = CostModel(given)
    given.clear()
    assert list(model.clients.items()) == [(4, (0.5, 0.0)), (2**63, (1.0, 2.0))]
    assert model == CostModel(dict(reversed(list(model.clients.items()))))
    assert repr(model) == "CostModel(2 clients)"
    assert hash(model) == hash(CostModel(model.clients))
    assert model != CostModel({4: ClientCost(0.5), 2**63: ClientCost(1, 3)})


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_model_survives_a_file(suffix: str, tmp_path: Path) -> None:
    model = CostModel({0: ClientCost(0.01, 0.2), 2**63: ClientCost(1e-9, 0.0)})
    path = tmp_path / f"costs.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(model.to_json()))
    else:
        rows = [f"{cost[1]},{key},{cost[0]}" for key, cost in model.clients.items()]
        header = "seconds_per_participation,client,seconds_per_example"
        path.write_text("\n".join([header, *rows]))
    assert CostModel.from_file(path) == CostModel.from_file(str(path)) == model


def test_costs_are_estimated_from_steps(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    steps = [(1, 4), (3, 2), (5, 1)]
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "step": step,
                    "clients": {"7": a, "9": b},
                    "client_seconds": {"7": 0.25 + 0.5 * a, "9": 2.0 * b},
                }
            )
            for step, (a, b) in enumerate(steps)
        )
    )
    clients = CostModel.from_steps(path).clients
    assert clients.keys() == {7, 9}
    assert clients[7] == pytest.approx((0.5, 0.25))
    assert clients[9] == pytest.approx((2.0, 0.0))


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ({}, "the cost model has 0 clients; it needs every client of the run: add them"),
        ({-1: ClientCost(1)}, "client key is -1; it must be at least 0: pass a larger int"),
        ({"a": ClientCost(1)}, "client key is 'a' (str); it must be a whole number"),
        ({1: (0.5, 2.0)}, "client 1: the cost is (0.5, 2.0); it must be a ClientCost: pass Clie"),
        ({1: ClientCost(-0.5)}, "client 1: seconds_per_example is -0.5; it must be at least 0.0"),
        ({1: ClientCost(0, -2)}, "client 1: seconds_per_participation is -2.0; it must be at le"),
        ({1: ClientCost(math.nan)}, "client 1: seconds_per_example is nan; it must be finite"),
        ({1: ClientCost(math.inf)}, "client 1: seconds_per_example is inf; it must be finite"),
    ],
)
def test_invalid_costs_are_refused(clients: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        CostModel(clients)


def test_a_model_of_other_clients_is_refused() -> None:
    model = CostModel(dict.fromkeys(range(10), ClientCost(1.0)))
    with pytest.raises(ConfigError, match=r"no cost for the clients 10, 12; it must .* add them"):
        model.check_clients(dict.fromkeys(range(13), 5) | {11: 0})
    with pytest.raises(ConfigError) as caught:
        model.check_clients({0: 5, 1: 0})
    assert "costs for the clients 2, 3, 4, 5, 6, 7 and 2 more, which the run does not" in str(
        caught.value
    )
    assert "remove them, or check the keys" in str(caught.value)
    without_data = CostModel({0: ClientCost(1.0)})
    without_data.check_clients({0: 5, 1: 0})
