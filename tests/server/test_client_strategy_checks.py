from typing import Any

import pytest
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
)

from flower_psl import ConfigError
from flower_psl.server.client_strategy_checks import check_client_strategy, check_round


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("FedAvg", "client_strategy is 'FedAvg'; it must be a strategy of flwr.serverapp"),
        (FedAvg, "client_strategy is <class .*; it must be a strategy"),
        (
            DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, 1.0, 2),
            "a DifferentialPrivacyClientSideFixedClipping, which .* Use the server-side wrapper",
        ),
        (
            DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.01, 2),
            "a DifferentialPrivacyClientSideAdaptiveClipping.* Use the server-side wrapper",
        ),
        (
            DifferentialPrivacyServerSideFixedClipping(QFedAvg(0.1), 1.0, 1.0, 2),
            "a QFedAvg, which cannot aggregate client segments: .* loss is on the server",
        ),
        (QFedAvg(0.1), "a QFedAvg, which cannot .* Use FedAvg"),
        (FedProx(proximal_mu=0.1), "a FedProx, which cannot .* steps_per_round"),
        (FedXgbBagging(), "a FedXgbBagging, .* trees of XGBoost. Use a strategy that aggregates"),
        (FedXgbCyclic(), "a FedXgbCyclic, .* trees"),
        (FedAvg(fraction_train=0.5), "fraction_train=0.5; every client that has trained is"),
        (FedAvg(weighted_by_key="tokens"), "weighted_by_key='tokens'; .* at 'num-examples'"),
        (FedAdam(min_train_nodes=3), "wants 3 nodes and the run waits for 2; .* Raise min_avail"),
        (Krum(), "wants 3 nodes and the run waits for 2; .*lower .* num_malicious_nodes"),
        (Krum(num_malicious_nodes=2), "wants 7 nodes and the run waits for 2"),
        (MultiKrum(num_malicious_nodes=1), "wants 5 nodes and the run waits for 2"),
        (Bulyan(num_malicious_nodes=1), "wants 7 nodes and the run waits for 2"),
        (
            DifferentialPrivacyServerSideFixedClipping(FedAvg(min_available_nodes=9), 1.0, 1.0, 2),
            "wants 9 nodes and the run waits for 2",
        ),
    ],
)
def test_a_strategy_that_cannot_aggregate_is_refused(strategy: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_client_strategy(strategy, min_available_nodes=2)


def test_a_strategy_gets_the_nodes_that_it_wants() -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(min_train_nodes=4, min_available_nodes=7), 1.0, 1.0, 8
    )
    check_client_strategy(strategy, min_available_nodes=7)
    check_round(strategy, 8, "round 1")
    with pytest.raises(ConfigError, match=r"round 1: it wants 7 nodes, and 6 trained"):
        check_round(strategy, 6, "round 1")
    with pytest.raises(ConfigError, match=r"round 1: .* num_sampled_clients=8, and 9 trained"):
        check_round(strategy, 9, "round 1")
