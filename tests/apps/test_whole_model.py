from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from apps.image_classification.config import AppConfig
from apps.image_classification.whole_model import Turn, local_batch_size, train_whole
from flower_psl import FixedLocalSampler

RunConfig = dict[str, bool | float | int | str]
TURN = Turn(seed=5, server_round=2, client_key=7)


def model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2))


def examples(size: int = 10) -> TensorDataset:
    draws = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(size, 3, generator=draws), torch.randint(2, (size,), generator=draws)
    )


def train(
    run_config: RunConfig, *, turn: Turn = TURN, size: int = 10, mu: float = 0.0
) -> tuple[dict[str, Tensor], float]:
    with torch.random.fork_rng():
        trained = model()
    config = AppConfig.from_run_config({"method": "fedavg", **run_config})
    loss = train_whole(trained, examples(size), config, turn, batch_size=4, proximal_mu=mu)
    return trained.state_dict(), loss


def by_hand(
    step: Callable[[nn.Module, Tensor, Tensor], Tensor], epochs: int = 1
) -> tuple[dict[str, Tensor], float]:
    """Train in the documented order by a plain loop, and return weights and mean loss."""
    trained, (images, labels) = model(), examples().tensors
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
    random = np.random.default_rng([TURN.seed, TURN.server_round, TURN.client_key])
    losses = []
    for _ in range(epochs):
        order = random.permutation(10)
        for start in (0, 4, 8):
            some = order[start : start + 4]
            optimizer.zero_grad()
            loss = step(trained, images[some], labels[some])
            optimizer.step()
            losses.append(float(loss) * len(some))
    return trained.state_dict(), sum(losses) / (10 * epochs)


def plain_step(trained: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = nn.CrossEntropyLoss()(trained(images), labels)
    torch.autograd.backward(loss)
    return loss


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("epochs", [1, 3])
def test_it_is_a_plain_loop_over_the_data(epochs: int) -> None:
    weights, loss = train({"local-epochs": epochs})
    expected, expected_loss = by_hand(plain_step, epochs)
    assert_close(weights, expected)
    assert loss == pytest.approx(expected_loss, rel=1e-6)


def test_fedprox_pulls_the_weights_back() -> None:
    start = model().state_dict()

    def step(trained: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = plain_step(trained, images, labels)
        for name, parameter in trained.named_parameters():
            assert parameter.grad is not None
            parameter.grad += 0.7 * (parameter.detach() - start[name])
        return loss

    weights, loss = train({}, mu=0.7)
    expected, expected_loss = by_hand(step)
    assert_close(weights, expected)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert not torch.allclose(weights["0.weight"], train({})[0]["0.weight"], atol=1e-4)


def test_gradients_are_clipped() -> None:
    def step(trained: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = plain_step(trained, images, labels)
        nn.utils.clip_grad_norm_(trained.parameters(), 0.1)
        return loss

    assert_close(train({"max-grad-norm": 0.1})[0], by_hand(step)[0])


def test_steps_of_a_round_are_bounded_over_all_epochs() -> None:
    bounded, _ = train({"local-epochs": 5, "steps-per-round": 3})
    assert_close(bounded, train({})[0])


@pytest.mark.parametrize(
    "turn",
    [
        Turn(seed=6, server_round=2, client_key=7),
        Turn(seed=5, server_round=3, client_key=7),
        Turn(seed=5, server_round=2, client_key=8),
    ],
)
def test_each_turn_has_an_order_of_its_own(turn: Turn) -> None:
    assert not torch.equal(train({}, turn=turn)[0]["0.weight"], train({})[0]["0.weight"])


def test_random_layers_hang_on_the_turn_and_leave_others_alone() -> None:
    def with_dropout() -> Tensor:
        trained = model(dropout=0.5)
        train_whole(trained, examples(), AppConfig(), TURN, batch_size=4)
        weight: Tensor = trained.state_dict()["0.weight"]
        return weight

    first = with_dropout()
    assert torch.equal(with_dropout(), first)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    train({})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_without_data_changes_nothing() -> None:
    weights, loss = train({}, size=0)
    assert loss == 0.0
    assert_close(weights, model().state_dict())


@pytest.mark.parametrize(("batch_size", "devices"), [(64, 10), (65, 10), (15, 10), (3, 10)])
def test_a_devices_batches_are_those_of_fixed_local_sampling(
    batch_size: int, devices: int
) -> None:
    schedule = FixedLocalSampler(batch_size=batch_size).schedule(
        dict.fromkeys(range(devices), 100), 1
    )
    assert local_batch_size(AppConfig(batch_size=batch_size), devices) == next(iter(schedule))[0]


def test_a_devices_batch_size_can_be_given() -> None:
    config = AppConfig(method="fedavg", local_batch_size=5)
    assert local_batch_size(config, 10) == 5
