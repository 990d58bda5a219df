"""Flower's strategies, and one of our own, aggregate client segments without being sent."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)
from torch import Tensor

from flower_psl import ConfigError, PslError
from flower_psl.server.client_aggregation import ClientMean
from flower_psl.server.flower_aggregation import FlowerAggregation

NODES = {900: 3, 20: 5, 77: 1, 5: 4}
CURRENT = {"conv.weight": torch.linspace(-1, 1, 6).reshape(2, 3), "scale": torch.tensor(0.5)}


def trained() -> dict[int, dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return {
        node: {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=draws)
            for name, tensor in CURRENT.items()
        }
        for node in NODES
    }


def aggregate(strategy: Strategy, server_round: int = 1) -> Mapping[str, Tensor]:
    return FlowerAggregation(strategy).aggregate(server_round, CURRENT, trained(), NODES)


@pytest.fixture(autouse=True)
def in_a_run(flower_run: None) -> None:
    """Let messages be made."""


def test_federated_averaging_has_the_bits_of_the_built_in_mean() -> None:
    random.seed(1)  # the strategy shuffles the nodes
    ours = ClientMean().aggregate(1, CURRENT, trained(), NODES)
    theirs = aggregate(FedAvg())
    assert list(ours) == list(theirs) == list(CURRENT)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.dtype is torch.float32


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedAdagrad": FedAdagrad,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.25),
    "Krum": Krum,
    "MultiKrum": lambda: MultiKrum(num_nodes_to_select=2),
    "Bulyan": Bulyan,
    "fixed clipping": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 0.05, 4),
    "adaptive clipping": lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.01, 4),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_of_flower_work_unchanged_for_several_rounds(name: str) -> None:
    aggregation = FlowerAggregation(STRATEGIES[name]())
    before = {key: tensor.clone() for key, tensor in CURRENT.items()}
    parts = trained()
    results = [aggregation.aggregate(turn, CURRENT, parts, NODES) for turn in (1, 2)]
    for result in results:
        assert list(result) == list(CURRENT)
        for key, tensor in result.items():
            assert (tensor.dtype, tensor.shape) == (CURRENT[key].dtype, CURRENT[key].shape)
            assert bool(torch.isfinite(tensor).all())
            assert not torch.equal(tensor, CURRENT[key])
    # Neither what went in nor what the clients hold has changed.
    assert all(torch.equal(tensor, before[key]) for key, tensor in CURRENT.items())
    for node, part in trained().items():
        assert all(torch.equal(tensor, parts[node][key]) for key, tensor in part.items())


def test_the_median_is_that_of_the_clients() -> None:
    parts = trained()
    for name, tensor in aggregate(FedMedian()).items():
        stacked = torch.stack([part[name] for part in parts.values()]).double()
        torch.testing.assert_close(tensor.double(), stacked.quantile(0.5, dim=0))


class Unheard(Strategy):
    """Takes over the parameters of the client with the most examples, by half."""

    def __init__(self, **faults: Any) -> None:
        self.faults = faults
        self.arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.arrays = arrays
        if call := self.faults.get("call"):
            call(grid)
        nodes = list(grid.get_node_ids())[self.faults.get("skip", 0) :]
        config.update(self.faults.get("config", {}))
        content = RecordDict({"model": arrays, "config": config})
        return [Message(content, node, "train") for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if "result" in self.faults:
            return self.faults["result"], None
        best = max(
            (reply.content for reply in replies),
            key=lambda content: int(content.metric_records["metrics"]["num-examples"]),  # type: ignore[arg-type]
        )
        tensors = best.array_records["arrays"].to_torch_state_dict()
        own = self.arrays.to_torch_state_dict()
        return ArrayRecord({name: (own[name] + tensors[name]) / 2 for name in own}), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        raise NotImplementedError

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        raise NotImplementedError

    def summary(self) -> None:
        raise NotImplementedError


def test_a_strategy_that_nobody_has_heard_of_works() -> None:
    best = trained()[20]
    for name, tensor in aggregate(Unheard()).items():
        torch.testing.assert_close(tensor, (CURRENT[name] + best[name]) / 2)


def test_a_strategy_gets_whole_numbers_of_examples() -> None:
    seen: list[object] = []

    class Counts(Unheard):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            kept = list(replies)
            seen.extend(each.content.metric_records["metrics"]["num-examples"] for each in kept)
            return super().aggregate_train(server_round, kept)

    weights = {900: 3.0, 20: 5.0, 77: 0.5, 5: 4.0}
    FlowerAggregation(Counts()).aggregate(1, CURRENT, trained(), weights)
    assert seen == [3, 5, 0.5, 4]
    assert [type(weight) for weight in seen] == [int, int, float, int]


def ask_without_end(grid: Grid) -> None:
    while len(list(grid.get_node_ids())) < 100:
        pass


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"skip": 1}, "it names 3 of the 4 nodes that trained in this round; all of them"),
        ({"config": {"mu": 0.1}}, r"configuration \['mu'\], on which they cannot act. Use a str"),
        ({"call": ask_without_end}, "it waits for more nodes than the 4 that trained .* Lower"),
        ({"call": lambda grid: grid.push_messages([])}, "calls grid.push_messages; a client_str"),
        ({"call": lambda grid: grid.pull_messages([])}, "calls grid.pull_messages"),
        ({"call": lambda grid: grid.send_and_receive([])}, "calls grid.send_and_receive"),
        ({"call": lambda grid: grid.run}, r"calls grid.run; a client_strategy"),
        ({"call": lambda grid: grid.set_run(None)}, "calls grid.set_run"),
    ],
)
def test_a_strategy_that_cannot_be_used_so_is_refused(faults: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"round 1, client_strategy Unheard: .*{reason}"):
        aggregate(Unheard(**faults))


NAN = {**CURRENT, "scale": torch.tensor(float("nan"))}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "it aggregated nothing from 4 clients; its log says why"),
        (ArrayRecord(), "it aggregated nothing"),
        (ArrayRecord({"scale": torch.tensor(0.5)}), "'conv.weight' is missing, or not finite; "),
        (ArrayRecord({**CURRENT, "scale": torch.ones(2)}), r"'scale' is of shape \(2,\), or not"),
        (ArrayRecord({**NAN}), r"'scale' is of shape \(\), or not finite; .* Lower the strategy"),
    ],
)
def test_a_result_that_cannot_be_used_is_refused(result: ArrayRecord, reason: str) -> None:
    with pytest.raises(PslError, match=f"round 7, client_strategy Unheard: {reason}"):
        aggregate(Unheard(result=result), server_round=7)


def test_an_error_of_a_strategy_names_it() -> None:
    def fail(grid: Grid) -> None:
        raise ValueError("no luck")

    with pytest.raises(PslError, match="round 1, client_strategy Unheard raised ValueError: no l"):
        aggregate(Unheard(call=fail))


def test_a_round_with_fewer_clients_than_the_strategy_wants_is_refused() -> None:
    few = {node: part for node, part in trained().items() if node in (900, 20)}
    aggregation = FlowerAggregation(FedAvg(min_available_nodes=3))
    with pytest.raises(
        ConfigError, match=r"client_strategy FedAvg: it wants 3 nodes, and 2 trained .* Lower"
    ):
        aggregation.aggregate(4, CURRENT, few, NODES)


def test_a_wrapper_for_privacy_wants_its_number_of_clients() -> None:
    wrapper = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 10)
    with pytest.raises(
        ConfigError, match=r"num_sampled_clients=10, and 4 trained in this round, .* Set it to"
    ):
        aggregate(wrapper)
