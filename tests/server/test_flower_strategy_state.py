"""Flower's strategies, stopped after a round and made anew: the same bits after the next."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
    Krum,
    Strategy,
)
from torch import Tensor

from flower_psl.errors import CheckpointError
from flower_psl.server.flower_aggregation import FlowerAggregation
from flower_psl.server.flower_strategy_state import strategy_kind
from flower_psl.storage import pack_state, unpack_state

MAKERS: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedAdagrad": FedAdagrad,
    "FedMedian": FedMedian,
    "Krum": lambda: Krum(num_malicious_nodes=0),
}
EXAMPLES = {1: 3, 2: 5, 3: 4}


def train(aggregation: FlowerAggregation, rounds: range, current: dict[str, Tensor]) -> None:
    for server_round in rounds:
        trained = {
            node: {
                name: torch.sin(tensor * node + server_round) for name, tensor in current.items()
            }
            for node in EXAMPLES
        }
        current.update(aggregation.aggregate(server_round, current, trained, EXAMPLES))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_strategy_goes_on_with_the_same_bits(
    make: Callable[[], Strategy], flower_run: None
) -> None:
    current = {"weight": torch.rand(2, 3), "bias": torch.rand(3)}
    before = FlowerAggregation(make())
    train(before, range(1, 3), current)
    saved = b"".join(pack_state({"strategy": before.state()}))
    resumed = {name: tensor.clone() for name, tensor in current.items()}
    train(before, range(3, 5), current)
    after = FlowerAggregation(make())
    after.load_state(unpack_state(saved, "here")["strategy"])
    train(after, range(3, 5), resumed)
    assert all(torch.equal(resumed[name], current[name]) for name in current)


class Wrapper(FedAvg):
    """A strategy that has another one, as those for differential privacy do."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy
        self.seen = np.zeros(2)


def test_a_strategy_inside_another_keeps_its_state(flower_run: None) -> None:
    inner = FedAdam()
    train(FlowerAggregation(inner), range(1, 2), {"weight": torch.rand(2)})
    wrapper = Wrapper(inner)
    wrapper.seen += 7
    saved = b"".join(pack_state({"strategy": FlowerAggregation(wrapper).state()}))
    there = Wrapper(FedAdam())
    FlowerAggregation(there).load_state(unpack_state(saved, "here")["strategy"])
    assert there.seen.tolist() == [7, 7]
    other = there.strategy
    assert isinstance(other, FedAdam)
    assert inner.m_t is not None and other.m_t is not None
    assert np.array_equal(inner.m_t["weight"], other.m_t["weight"])


class Accounting(FedAvg):
    """A strategy with an attribute that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.accountant: object = object()


def test_what_cannot_be_saved_is_named() -> None:
    strategy = Accounting()
    with pytest.raises(CheckpointError, match=r"strategy/accountant/value is a object; .*Keep"):
        pack_state({"strategy": FlowerAggregation(strategy).state()})


def test_an_attribute_that_comes_later_is_refused_when_it_is_saved() -> None:
    strategy = Wrapper(FedAvg())
    aggregation = FlowerAggregation(strategy)
    strategy.strategy.velocity = 1.0  # type: ignore[attr-defined]
    with pytest.raises(
        CheckpointError, match=r"FedAvg has the attributes \['velocity'\].*__init__"
    ):
        aggregation.state()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"aggregate_train": {"value": 1}},
            r"FedAdam and what .* differ in \['aggregate_train'\]",
        ),
        ({"_x": {"value": 1}}, r"differ in \['_x'\]"),
        ({"min_train_nodes": {"value": 9}}, r"differ in \['min_train_nodes'\]"),
        ({"eta": {"value": "x"}}, r"eta is 'x' where 0\.1 is"),
        ({"eta": {"value": True}}, r"eta is True where 0\.1 is"),
        ({"eta": {"strategy": {}}}, r"eta is a 'strategy' where 0\.1 is"),
        ({"eta": {"secret": 1}}, r"eta is a 'secret'"),
    ],
)
def test_what_is_no_state_of_the_strategy_is_refused(changes: Any, said: str) -> None:
    strategy = FedAdam()
    before = dict(vars(strategy))
    aggregation = FlowerAggregation(strategy)
    with pytest.raises(ValueError, match=said):
        aggregation.load_state({**aggregation.state(), **changes})
    assert vars(strategy) == before
    state = aggregation.state()
    del state["m_t"]
    with pytest.raises(ValueError, match=r"differ in \['m_t'\]"):
        aggregation.load_state(state)


def test_bounds_on_numbers_of_nodes_are_those_of_the_strategy_that_goes_on() -> None:
    saved = FlowerAggregation(FedAvg(min_train_nodes=3, min_available_nodes=3)).state()
    strategy = FedAvg(min_train_nodes=2, min_available_nodes=2)
    FlowerAggregation(strategy).load_state(saved)
    assert (strategy.min_train_nodes, strategy.min_available_nodes) == (2, 2)


def test_strategies_are_told_apart_by_their_settings() -> None:
    def wrapped(strategy: Strategy, noise: float = 0.1) -> Strategy:
        return DifferentialPrivacyServerSideFixedClipping(strategy, noise, 1.0, 3)

    assert strategy_kind(None) == "none"
    kinds = [
        *(FedAdam(eta=0.1), FedAdam(eta=0.001), FedYogi(eta=0.1), FedAvg()),
        *(wrapped(FedAdam(eta=0.1)), wrapped(FedAdam(eta=0.001)), wrapped(FedAdam(eta=0.1), 0.2)),
    ]
    assert len(set(map(strategy_kind, kinds))) == len(kinds)
    assert strategy_kind(FedAdam(min_train_nodes=2)) == strategy_kind(FedAdam(min_train_nodes=3))
    assert "eta=0.001" in strategy_kind(FedAdam(eta=0.001))
