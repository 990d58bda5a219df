from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor
from torch.utils.data import TensorDataset

from flower_psl import ConfigError, ParallelSplitLearning, SplitClient, SplitModel, run_in_process

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
