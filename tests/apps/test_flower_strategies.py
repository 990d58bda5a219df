from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from apps.image_classification.config import AppConfig
from apps.image_classification.flower_strategies import FLOWER_STRATEGIES

RunConfig = dict[str, bool | float | int | str]


@pytest.mark.parametrize(
    ("name", "kind", "run_config", "attributes"),
    [
        ("fedavg", flower.FedAvg, {}, {}),
        ("fedprox", flower.FedProx, {"proximal-mu": 0.3}, {"proximal_mu": 0.3}),
        (
            "fedavgm",
            flower.FedAvgM,
            {"server-learning-rate": 0.5, "server-momentum": 0.8},
            {"server_learning_rate": 0.5, "server_momentum": 0.8},
        ),
        ("fedadam", flower.FedAdam, {"server-learning-rate": 0.5}, {"eta": 0.5}),
        ("fedyogi", flower.FedYogi, {"server-learning-rate": 0.5}, {"eta": 0.5}),
        ("fedadagrad", flower.FedAdagrad, {"server-learning-rate": 0.5}, {"eta": 0.5}),
        ("fedmedian", flower.FedMedian, {}, {}),
        ("fedtrimmedavg", flower.FedTrimmedAvg, {"trim-share": 0.1}, {"beta": 0.1}),
        ("krum", flower.Krum, {"num-malicious-nodes": 2}, {"num_malicious_nodes": 2}),
    ],
)
def test_a_name_is_a_strategy_of_flower_with_its_settings(
    name: str, kind: type, run_config: RunConfig, attributes: dict[str, Any]
) -> None:
    config = AppConfig.from_run_config(
        {"method": name, "fraction-evaluate": 0.5, "min-available-nodes": 7, **run_config}
    )
    strategy = FLOWER_STRATEGIES[name](config)
    assert type(strategy) is kind
    common = {"fraction_train": 1.0, "fraction_evaluate": 0.5, "min_available_nodes": 1}
    for attribute, value in {**common, **attributes}.items():
        assert getattr(strategy, attribute) == value, attribute


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_the_servers_learning_rate_is_the_strategys_own_unless_given(name: str) -> None:
    ours = vars(FLOWER_STRATEGIES[name](AppConfig(method=name)))
    kinds: dict[str, type] = {
        "fedavgm": flower.FedAvgM,
        "fedadam": flower.FedAdam,
        "fedyogi": flower.FedYogi,
        "fedadagrad": flower.FedAdagrad,
    }
    own = vars(kinds[name]())
    for attribute in {"eta", "server_learning_rate"} & own.keys():
        assert ours[attribute] == own[attribute]
