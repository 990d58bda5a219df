import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling import BatchSchedule, ClientCost, CostModel, round_seconds


def test_a_step_lasts_as_long_as_its_slowest_client() -> None:
    cost = CostModel({0: ClientCost(1.0, 0.5), 1: ClientCost(0.0, 4.0), 2: ClientCost(100.0)})
    schedule = BatchSchedule.from_steps([{0: 2, 1: 7}, {0: 6, 1: 1}, {0: 2}], {0: 10, 1: 8})
    assert round_seconds(schedule, cost) == 4.0 + 6.5 + 2.5


def test_a_client_without_a_cost_is_refused() -> None:
    schedule = BatchSchedule.from_steps([{0: 2, 1: 7}], {0: 10, 1: 8})
    with pytest.raises(ConfigError, match=r"client 1 takes part .* but has no cost; .*: add it"):
        round_seconds(schedule, CostModel({0: ClientCost(1.0)}))
