from collections.abc import Callable
from typing import cast

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn
from torch.utils.data import TensorDataset

from flower_psl import ConfigError, SplitClient
from flower_psl.client.client_cache import ClientCache
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepRequest


def context(run_id: int, node_id: int) -> Context:
    return Context(run_id, node_id, {}, RecordDict(), {})


def make_client(context: Context) -> SplitClient:
    return SplitClient(nn.Linear(2, 2), TensorDataset(torch.rand(4, 2), torch.zeros(4)))


def forward(client: SplitClient, step: int) -> StepId:
    step_id = StepId(0, 1, 0, step, 3, 0, 2)
    weights = ModuleIndex(nn.Linear(2, 2)).tensors
    client.handle(StepRequest(phase=Phase.FORWARD, id=step_id, weights=weights))
    return step_id


def test_a_client_is_made_once_a_node() -> None:
    cache = ClientCache()
    first = cache.get(make_client, context(1, 10))
    assert cache.get(make_client, context(1, 10)) is first
    other = cache.get(make_client, context(1, 11))
    assert other is not first
    assert cache.get(make_client, context(1, 10)) is first


def test_another_run_drops_the_clients_of_this_one() -> None:
    cache = ClientCache()
    first = cache.get(make_client, context(1, 10))
    second = cache.get(make_client, context(2, 10))
    assert second is not first
    assert cache.get(make_client, context(1, 10)) is not first


def test_a_new_step_frees_the_graphs_of_the_last_one() -> None:
    cache = ClientCache()
    clients = [cache.get(make_client, context(1, node)) for node in (10, 11)]
    cache.start_step((0, 1, 0, 1))
    known = [forward(client, step=1) for client in clients]
    cache.start_step((0, 1, 0, 1))
    assert [client.holds(step) for client, step in zip(clients, known, strict=True)] == [True] * 2
    cache.start_step((0, 1, 0, 2))
    assert [client.holds(step) for client, step in zip(clients, known, strict=True)] == [False] * 2


def test_anything_but_a_client_is_refused() -> None:
    make = cast(Callable[[Context], SplitClient], lambda context: nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="client_fn returned a Linear; it must return a"):
        ClientCache().get(make, context(1, 10))
