from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import (
    ConfigError,
    Encodings,
    ParallelSplitLearning,
    SplitClient,
    SplitModel,
    cut,
    run_in_process,
)

Make = Callable[..., ParallelSplitLearning]


def weights(
    strategy: ParallelSplitLearning, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> list[Tensor]:
    result = run_in_process(strategy, clients, arrays, num_rounds=1)
    return list(result.arrays.to_torch_state_dict().values())


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_run_repeats_bit_for_bit_with_the_same_clients(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    first = weights(make_strategy(), clients, arrays)
    torch.rand(3)
    assert same(weights(make_strategy(), clients, arrays), first)
    assert not same(weights(make_strategy(seed=1), clients, arrays), first)


def test_the_order_in_which_clients_are_given_does_not_matter(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    backwards = dict(reversed(clients.items()))
    assert same(
        weights(make_strategy(), clients, arrays), weights(make_strategy(), backwards, arrays)
    )


def test_a_second_run_of_one_step_starts_afresh(
    make_strategy: Make,
    split: SplitModel,
    train_sets: dict[int, TensorDataset],
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
) -> None:
    """Its only step has the id of the first run's, but other weights."""
    strategy = make_strategy(steps_per_round=1)
    once = run_in_process(strategy, clients, arrays, num_rounds=1)
    again = weights(strategy, clients, once.arrays)
    fresh = {key: SplitClient(split.client, data) for key, data in train_sets.items()}
    assert same(again, weights(strategy, fresh, once.arrays))


def test_every_client_is_awaited_whatever_the_minimum(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    strategy = make_strategy(min_available_nodes=50)
    result = run_in_process(strategy, clients, arrays, num_rounds=1)
    assert result.train_metrics_clientapp[1]["num-examples"] == 21


def test_no_clients_are_refused(make_strategy: Make, arrays: ArrayRecord) -> None:
    with pytest.raises(ConfigError, match="clients is empty"):
        run_in_process(make_strategy(), {}, arrays)


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    largest = max(float(tensor.abs().max()) for tensor in right)
    pairs = zip(left, right, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def trained(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    *,
    rounds: int,
    fuse: bool,
    **changes: Any,
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Return the gradients of every step, and the final weights."""
    seen: list[list[Tensor]] = []

    def keep(optimizer: Optimizer, *_: object) -> None:
        parameters = optimizer.param_groups[0]["params"]
        seen.append([parameter.grad.clone() for parameter in parameters])

    def optimizer_fn(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = SGD(parameters, lr=0.1, momentum=0.9)
        optimizer.register_step_pre_hook(keep)
        return optimizer

    strategy = make_strategy(optimizer_fn=optimizer_fn, **changes)
    result = run_in_process(strategy, clients, arrays, num_rounds=rounds, fuse_clients=fuse)
    return seen, list(result.arrays.to_torch_state_dict().values())


def test_a_fused_run_is_that_of_the_clients_one_by_one(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    apart, apart_weights = trained(make_strategy, clients, arrays, rounds=17, fuse=False)
    fused, fused_weights = trained(make_strategy, clients, arrays, rounds=17, fuse=True)
    assert len(fused) == len(apart) == 51
    assert max(map(difference, fused[:10], apart[:10])) <= 1e-12
    assert difference(fused_weights, apart_weights) <= 1e-9


def test_a_fused_step_in_float32_agrees_to_its_precision(
    make_strategy: Make, train_sets: dict[int, TensorDataset]
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    arrays, split = ArrayRecord(model.state_dict()), cut(model, at="1")
    clients = {
        key: SplitClient(split.client, TensorDataset(data.tensors[0].float(), data.tensors[1]))
        for key, data in train_sets.items()
    }
    runs = [
        trained(
            make_strategy, clients, arrays, rounds=1, fuse=fuse, model=split, steps_per_round=1
        )[0][0]
        for fuse in (True, False)
    ]
    assert runs[0][0].dtype == torch.float32
    assert difference(*runs) <= 1e-5


def test_a_fused_run_repeats_bit_for_bit_and_evaluates_alike(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    first, again = (
        run_in_process(make_strategy(), clients, arrays, num_rounds=2, fuse_clients=True)
        for _ in range(2)
    )
    assert same(
        list(first.arrays.to_torch_state_dict().values()),
        list(again.arrays.to_torch_state_dict().values()),
    )
    apart = run_in_process(make_strategy(), clients, arrays, num_rounds=2)
    for server_round in (1, 2):
        ours = dict(first.evaluate_metrics_clientapp[server_round])
        assert ours == pytest.approx(dict(apart.evaluate_metrics_clientapp[server_round]))
        assert ours["num-examples"] == 8


@pytest.mark.parametrize(
    ("layer", "what"),
    [(nn.Dropout(), "draws random numbers"), (nn.BatchNorm1d(8), "mixes the examples")],
)
def test_a_model_that_cannot_be_fused_is_refused(
    make_strategy: Make, train_sets: dict[int, TensorDataset], layer: nn.Module, what: str
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)).double()
    split = cut(model, at="1")
    clients = {key: SplitClient(split.client, data) for key, data in train_sets.items()}
    with pytest.raises(ConfigError, match=rf"^layer '1' \(.*\) of the client segment {what}"):
        run_in_process(
            make_strategy(model=split), clients, ArrayRecord(model.state_dict()), fuse_clients=True
        )


def test_encodings_and_other_modes_of_sharing_are_not_fused(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    encoded = make_strategy(encodings=Encodings(activations="int8"))
    with pytest.raises(
        ConfigError,
        match=r"fuse_clients with Encodings\(activations='int8', .* must be 'raw'. Leave out fuse",
    ):
        run_in_process(encoded, clients, arrays, fuse_clients=True)
    own_weights: Any = SimpleNamespace(client_sync="round")
    with pytest.raises(
        ConfigError,
        match=r"fuse_clients with client_sync='round'; only clients that share .* Leave",
    ):
        run_in_process(own_weights, clients, arrays, fuse_clients=True)


def test_a_strategy_of_flower_needs_a_run(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    strategy = make_strategy(client_sync="round", client_strategy=FedAdam())
    with pytest.raises(
        ConfigError, match=r"client_strategy is a FedAdam, .* exist in a Flower run only; .* Leave"
    ):
        run_in_process(strategy, clients, arrays)


def test_without_a_common_segment_there_is_nothing_to_evaluate_centrally(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    with pytest.raises(
        ConfigError, match=r"evaluate_fn is given with client_sync='none'; .* Leave it out"
    ):
        run_in_process(
            make_strategy(client_sync="none"),
            clients,
            arrays,
            evaluate_fn=lambda server_round, whole: None,
        )


@pytest.mark.parametrize("sync", ["round", "none"])
def test_a_second_run_trains_as_the_first(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, sync: str
) -> None:
    strategy = make_strategy(client_sync=sync)
    assert same(weights(strategy, clients, arrays), weights(strategy, clients, arrays))
