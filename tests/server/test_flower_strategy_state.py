"""Flower's strategies, stopped after a round and made anew: the same bits after the next."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
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


def test_what_cannot_be_saved_is_named() -> None:
    strategy = FedAvg()
    strategy.accountant = object()  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"strategy/accountant/value is a object; .*Keep"):
        pack_state({"strategy": FlowerAggregation(strategy).state()})
