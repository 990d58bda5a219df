"""Methods that are the same as others under conditions that can be named."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from flower_psl import FixedLocalSampler, ProportionalLocalSampler, cut
from tests.parity.test_client_sync import (
    CLASS_WEIGHTS,
    ONE_STEP,
    OPTIMIZERS,
    CarryFn,
    Case,
    InNewProcesses,
    assert_close,
    differs,
    mean_of,
    plain_model,
)

CARRIES: dict[str, CarryFn] = {"in-process": Case.carry, "messages": InNewProcesses}
RELAY: list[Mapping[int, int]] = [{0: 3}, {0: 2}, {1: 4}, {1: 2}, {2: 5}]


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class InOrder:
        def permutation(self, size: int) -> NDArray[np.int64]:
            return np.arange(size)

    monkeypatch.setattr("flower_psl.client.own_examples.generator", lambda *_: InOrder())


@pytest.mark.parametrize("update", ["global-batch", "per-client-average"])
def test_splitfed_with_one_local_step_is_gpsl_over_messages_too(
    update: str, device_processes: None
) -> None:
    by_step = Case(steps=ONE_STEP).weights()
    by_round = Case(
        steps=ONE_STEP,
        settings={"client_sync": "round", "server_update": update},
        carry=InNewProcesses,
    )
    assert_close(by_round.weights(), by_step)


@pytest.mark.parametrize("update", ["global-batch", "per-client-average"])
@pytest.mark.parametrize("carry", CARRIES.values(), ids=CARRIES)
def test_clients_weigh_as_much_as_their_labels(
    update: str, carry: CarryFn, device_processes: None
) -> None:
    loss_fn = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    by_step = Case(steps=ONE_STEP, loss_fn=loss_fn).weights()
    by_round = Case(
        steps=ONE_STEP,
        loss_fn=loss_fn,
        settings={"client_sync": "round", "server_update": update},
        carry=carry,
    )
    assert_close(by_round.weights(), by_step)


def test_counts_would_be_the_wrong_weights_where_classes_have_theirs() -> None:
    loss_fn = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    case = Case(steps=ONE_STEP, loss_fn=loss_fn, num_rounds=1)
    [batch] = case.batches()
    models: dict[int, nn.Module] = {}
    for key, (inputs, labels) in batch.items():
        models[key] = plain_model()
        torch.autograd.backward(loss_fn(models[key](inputs), labels))
        case.optimizer_fn(models[key].parameters()).step()
    by_count = mean_of(models, {key: len(labels) for key, (_, labels) in batch.items()})
    by_step = case.weights()
    for segment in (split := cut(plain_model(), at=case.at)).client, split.server:
        names = list(segment.state_dict())
        assert differs({n: by_count[n] for n in names}, {n: by_step[n] for n in names})


@pytest.mark.parametrize("carry", CARRIES.values(), ids=CARRIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_relay_with_travelling_optimizer_state_is_centralized_training_in_its_order(
    optimizer: str, carry: CarryFn, device_processes: None
) -> None:
    case = Case(steps=RELAY, optimizer_fn=OPTIMIZERS[optimizer], carry=carry)
    central = plain_model()
    its_optimizer = case.optimizer_fn(central.parameters())
    split = cut(plain_model(), at=case.at)
    server_optimizer = case.optimizer_fn(split.server.parameters())
    baton: tuple[dict[str, Tensor], dict[str, object] | None] = (split.client.state_dict(), None)
    for batch in case.batches() * case.num_rounds:
        [(inputs, labels)] = batch.values()
        its_optimizer.zero_grad()
        torch.autograd.backward(case.loss_fn(central(inputs), labels))
        its_optimizer.step()

        holder = copy.deepcopy(split.client)  # the device whose turn it is
        holder.load_state_dict(baton[0])
        optimizer_of_holder = case.optimizer_fn(holder.parameters())
        if baton[1] is not None:
            optimizer_of_holder.load_state_dict(baton[1])
        server_optimizer.zero_grad()
        torch.autograd.backward(case.loss_fn(split.server(holder(inputs)), labels))
        optimizer_of_holder.step()
        server_optimizer.step()
        baton = (holder.state_dict(), optimizer_of_holder.state_dict())
    split.client.load_state_dict(baton[0])
    assert_close(case.weights(), central.state_dict())
    assert_close(split.state_dict(), central.state_dict())


@given(
    clients=st.integers(1, 12),
    share=st.integers(1, 9),
    size=st.integers(1, 40),
    server_round=st.integers(0, 3),
)
@settings(deadline=None)
def test_fixed_and_proportional_sampling_agree_on_clients_with_equal_data(
    clients: int, share: int, size: int, server_round: int
) -> None:
    num_examples = dict.fromkeys(range(clients), size)
    batch_size = min(share, size) * clients
    fixed = FixedLocalSampler(batch_size=batch_size).schedule(num_examples, server_round)
    proportional = ProportionalLocalSampler(batch_size).schedule(num_examples, server_round)
    assert [dict(step) for step in fixed] == [dict(step) for step in proportional]
