import copy
from collections.abc import Callable, Iterable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from flower_psl import SplitModel, cut
from flower_psl.errors import CheckpointError
from flower_psl.server.learner import Learner, LRSchedulerFn, OptimizerFn
from flower_psl.storage import pack_state, unpack_state

STEPS = 4


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(9, 6, dtype=torch.float64, generator=generator),
            torch.randint(3, (9,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def part_gradients(split: SplitModel, x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    """Return the gradients of three parts, and leave the server's own in place."""
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 9)):
        twin = copy.deepcopy(split.client)
        output = split.server(twin(x[rows]))
        loss = cross_entropy(output, y[rows], reduction="sum") / len(x)
        loss.backward()  # type: ignore[no-untyped-call]
        parts.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
    return parts


def learn(
    model: nn.Module,
    optimizer_fn: OptimizerFn,
    scheduler_fn: LRSchedulerFn | None = None,
    max_grad_norm: float | None = None,
) -> dict[str, Tensor]:
    split = cut(copy.deepcopy(model), at="1")
    learner = Learner(
        split, optimizer_fn, scheduler_fn, total_steps=STEPS, max_grad_norm=max_grad_norm
    )
    for x, y in batches():
        learner.start_step()
        learner.update(part_gradients(split, x, y), [])
    return split.state_dict()


def learn_centrally(
    model: nn.Module,
    optimizer_fn: OptimizerFn,
    scheduler_fn: LRSchedulerFn | None = None,
    max_grad_norm: float | None = None,
) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    optimizer = optimizer_fn(model.parameters())
    scheduler = None if scheduler_fn is None else scheduler_fn(optimizer, STEPS)
    for x, y in batches():
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model.state_dict()


def assert_close(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert list(ours) == list(reference)
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-12, atol=1e-14)


def momentum(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.01)


def one_cycle(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=0.5, total_steps=total_steps)


@pytest.mark.parametrize("optimizer_fn", [momentum, adamw])
@pytest.mark.parametrize("scheduler_fn", [None, one_cycle])
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_steps_are_those_of_one_optimizer_over_the_whole_model(
    model: nn.Sequential,
    optimizer_fn: OptimizerFn,
    scheduler_fn: LRSchedulerFn | None,
    max_grad_norm: float | None,
) -> None:
    assert_close(
        learn(model, optimizer_fn, scheduler_fn, max_grad_norm),
        learn_centrally(model, optimizer_fn, scheduler_fn, max_grad_norm),
    )


@pytest.mark.parametrize("frozen", ["0.weight", "2.bias"])
def test_a_frozen_parameter_stays(model: nn.Sequential, frozen: str) -> None:
    model.get_parameter(frozen).requires_grad_(False)
    learned = learn(model, momentum)
    assert torch.equal(learned[frozen], model.get_parameter(frozen))
    assert_close(learned, learn_centrally(model, momentum))


def test_the_optimizer_sees_the_parameters_in_their_original_order(model: nn.Sequential) -> None:
    seen: list[nn.Parameter] = []

    def spy(parameters: Iterable[nn.Parameter]) -> Optimizer:
        seen.extend(parameters)
        return SGD(seen, lr=0.1)

    Learner(cut(model, at="1"), spy, None, total_steps=1, max_grad_norm=None)
    assert [id(parameter) for parameter in seen] == [id(p) for p in model.parameters()]


def test_the_schedule_advances_once_a_step(split: SplitModel) -> None:
    optimizers: list[Optimizer] = []

    def halve(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        optimizers.append(optimizer)
        assert total_steps == 2
        return StepLR(optimizer, step_size=1, gamma=0.5)

    learner = Learner(split, momentum, halve, total_steps=2, max_grad_norm=None)
    x, y = batches()[0]
    rates = []
    for _ in range(2):
        learner.start_step()
        learner.update(part_gradients(split, x, y), [])
        rates.append(optimizers[0].param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.025])


def test_gradients_do_not_outlive_their_step(split: SplitModel) -> None:
    learner = Learner(split, momentum, None, total_steps=2, max_grad_norm=None)
    x, y = batches()[0]
    learner.update(part_gradients(split, x, y), [])
    learner.start_step()
    assert all(parameter.grad is None for parameter in split.parameters())


def test_a_parameter_that_the_optimizer_was_not_given_does_not_add_to_the_norm(
    split: SplitModel,
) -> None:
    def first_only(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return SGD(list(parameters)[:1], lr=0.0)

    learner = Learner(split, first_only, None, total_steps=3, max_grad_norm=1e9)
    x, y = batches()[0]
    norms = []
    for _ in range(3):
        learner.start_step()
        learner.update(part_gradients(split, x, y), [])
        gradients = [cast(Tensor, parameter.grad) for parameter in split.parameters()]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
    assert norms[0] > 0
    assert norms == [norms[0]] * 3


def test_the_clients_gradients_are_summed_in_order_and_not_changed(split: SplitModel) -> None:
    def keep(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=0.0)

    learner = Learner(split, keep, None, total_steps=1, max_grad_norm=None)
    parts: list[dict[str, Tensor]] = [
        {"0.bias": torch.full((8,), value, dtype=torch.float64)} for value in (1e16, 1.0, -1e16)
    ]
    learner.update(parts, [])
    parameter = split.client.get_parameter("0.bias")
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [(1e16 + 1.0) - 1e16] * 8
    assert [float(part["0.bias"][0]) for part in parts] == [1e16, 1.0, -1e16]
    assert split.client.get_parameter("0.weight").grad is None


def test_running_statistics_change_once_a_step() -> None:
    split = cut(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), at="0")
    learner = Learner(split, momentum, None, total_steps=1, max_grad_norm=None)
    moments = {
        "0.mean": torch.ones(1, 2).double(),
        "0.var": torch.ones(1, 2).double(),
        "0.count": torch.tensor([4]),
    }
    learner.update([], [moments, moments])
    weights = learner.client_weights()
    assert weights["0.num_batches_tracked"] == 1
    torch.testing.assert_close(weights["0.running_mean"], torch.full((2,), 0.1))
    torch.testing.assert_close(weights["0.running_var"], torch.full((2,), 0.9 + 0.1 * 8 / 7))


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), lambda: nn.BatchNorm1d(2)])
def test_clients_get_parameters_and_buffers(build: Callable[[], nn.Module]) -> None:
    split = cut(nn.Sequential(build(), nn.Linear(2, 2)), at="0")
    learner = Learner(split, momentum, None, total_steps=1, max_grad_norm=None)
    weights = learner.client_weights()
    assert weights.keys() == split.client.state_dict().keys()
    assert not any(tensor.requires_grad for tensor in weights.values())


SCHEDULES: dict[str, LRSchedulerFn | None] = {
    "none": None,
    "step": lambda optimizer, total: StepLR(optimizer, 2),
    "one cycle": lambda optimizer, total: OneCycleLR(optimizer, 0.1, total_steps=total),
    "milestones": lambda optimizer, total: MultiStepLR(optimizer, [1, 3]),
    "one after the other": lambda optimizer, total: SequentialLR(
        optimizer, [LinearLR(optimizer), CosineAnnealingLR(optimizer, total)], [2]
    ),
    "function": lambda optimizer, total: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("at", range(STEPS + 1))
def test_a_learner_goes_on_from_its_state_with_the_same_bits(
    at: int, schedule: LRSchedulerFn | None, model: nn.Module
) -> None:
    def make() -> Learner:
        split = cut(copy.deepcopy(model), at="1")
        return Learner(split, adamw, schedule, total_steps=STEPS, max_grad_norm=0.5)

    def learn_on(learner: Learner, steps: range) -> None:
        for x, y in batches()[steps.start : steps.stop]:
            learner.start_step()
            learner.update(part_gradients(learner.model, x, y), [])

    learner, resumed = make(), make()
    learn_on(learner, range(at))
    saved = b"".join(pack_state({"learner": learner.state()}))
    learn_on(learner, range(at, STEPS))
    resumed.load_state(unpack_state(saved, "here")["learner"])
    learn_on(resumed, range(at, STEPS))
    ours, theirs = learner.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_state_of_another_model_is_refused(model: nn.Module, split: SplitModel) -> None:
    learner = Learner(split, adamw, None, total_steps=1, max_grad_norm=None)
    state = learner.state()
    state["server"] = {**state["server"], "2.weight": torch.zeros(())}
    with pytest.raises(CheckpointError, match=r"saved tensor 2.weight is .* \(\), the model's"):
        learner.load_state(state)


def test_a_recipe_names_the_optimizer_its_settings_and_its_schedule(split: SplitModel) -> None:
    recipe = Learner(split, adamw, SCHEDULES["step"], total_steps=1, max_grad_norm=None).recipe
    assert recipe["optimizer"] == "AdamW"
    assert recipe["optimizer's weight_decay"] == "0.01"
    assert recipe["schedule"] == "StepLR"
