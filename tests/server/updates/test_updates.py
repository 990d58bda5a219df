import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from flower_psl import PslError, SplitModel, cut
from flower_psl.server.discarded import DiscardedError
from flower_psl.server.kept_buffers import kept_buffers
from flower_psl.server.learner import Learner
from flower_psl.server.server_forward import ServerForward
from flower_psl.server.step_plan import StepPlan
from flower_psl.server.torn import TornError
from flower_psl.server.updates import SERVER_UPDATES, ServerUpdate
from flower_psl.split import ModuleIndex
from flower_psl.storage import pack_state, unpack_state

PLAN = StepPlan(server_round=1, step=1, batch_sizes={2: 3, 5: 1}, starts={2: 0, 5: 0})
LossFn = Callable[[Tensor, Tensor], Tensor]


def make(name: str, loss_fn: LossFn, learner: Learner) -> ServerUpdate:
    return SERVER_UPDATES[name](learner, ServerForward(loss_fn=loss_fn, seed=3))


def learner_of(split: SplitModel, **changes: Any) -> Learner:
    settings: dict[str, Any] = {
        "lr_scheduler_fn": None,
        "total_steps": 4,
        "max_grad_norm": None,
        "server_only": True,
    }
    optimizer_fn = changes.pop("optimizer_fn", lambda p: SGD(p, lr=0.1))
    return Learner(split, optimizer_fn, **(settings | changes))


def momentum(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


def batch(labels: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    draws = torch.Generator().manual_seed(4)
    activations = [
        torch.randn(len(part), 8, dtype=torch.float64, generator=draws) for part in labels
    ]
    return activations, [torch.tensor(part) for part in labels]


@pytest.mark.parametrize("name", SERVER_UPDATES)
def test_a_client_whose_labels_are_all_ignored_changes_nothing(
    split: SplitModel, name: str
) -> None:
    loss_fn = nn.CrossEntropyLoss(ignore_index=2)
    turn = make(name, loss_fn, learner_of(split)).run(PLAN, *batch([[0, 1, 2], [2]]))
    own, other = turn.cut_gradients
    assert not other.any()
    assert bool(torch.isfinite(own).all()) and own.any()
    assert torch.isfinite(torch.tensor(turn.loss))


@pytest.mark.parametrize("name", SERVER_UPDATES)
def test_only_the_server_segment_learns(split: SplitModel, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in split.state_dict().items()}
    update = make(name, nn.CrossEntropyLoss(), learner_of(split))
    for _ in range(2):
        update.run(PLAN, *batch([[0, 1, 2], [2]]))
    update.end_round()
    changed = [key for key, tensor in split.state_dict().items() if not tensor.equal(before[key])]
    assert changed == ["2.weight", "2.bias"]


def test_copies_leave_the_server_segment_alone_until_the_round_ends(split: SplitModel) -> None:
    before = split.state_dict()["2.weight"].clone()
    update = make("per-client-average", nn.CrossEntropyLoss(), learner_of(split))
    update.run(PLAN, *batch([[0, 1, 2], [2]]))
    assert torch.equal(split.state_dict()["2.weight"], before)
    update.end_round()
    after = split.state_dict()["2.weight"].clone()
    assert not torch.equal(after, before)
    update.end_round()  # nobody trained
    assert torch.equal(split.state_dict()["2.weight"], after)


class Counting(nn.Module):
    """Counts its calls, and holds a number that no mean of equal parts gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("constant", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return x


def test_buffers_are_averaged_too_and_constants_stay(split: SplitModel) -> None:
    model = SplitModel(split.client, nn.Sequential(Counting(), split.server))
    update = make("per-client-average", nn.CrossEntropyLoss(), learner_of(model))
    update.run(PLAN, *batch([[0, 1, 2], [2]]))
    later = StepPlan(server_round=1, step=2, batch_sizes={2: 3}, starts={2: 3})
    update.run(later, *batch([[0, 1, 2]]))
    update.end_round()
    # Client 2: two calls and 6 examples, client 5: one of each.
    assert int(model.state_dict()["0.calls"]) == round((2 * 6 + 1) / 7)
    assert torch.equal(model.state_dict()["0.constant"], torch.tensor(0.1))


def test_copies_start_each_round_from_the_mean(split: SplitModel) -> None:
    update = make("per-client-average", nn.CrossEntropyLoss(), learner_of(split))
    update.run(PLAN, *batch([[0, 1, 2], [2]]))
    update.end_round()
    again = make("per-client-average", nn.CrossEntropyLoss(), learner_of(split))
    parts = batch([[1, 1, 0], [0]])
    ours, theirs = update.run(PLAN, *parts), again.run(PLAN, *parts)
    assert ours.loss == theirs.loss


@pytest.mark.parametrize("name", ["global-batch", "per-client-sequential"])
def test_learning_rates_go_on_once_a_step(split: SplitModel, name: str) -> None:
    schedulers: list[StepLR] = []

    def schedule(optimizer: Any, total_steps: int) -> StepLR:
        schedulers.append(StepLR(optimizer, step_size=1, gamma=0.5))
        return schedulers[-1]

    learner = learner_of(split, lr_scheduler_fn=schedule)
    update = make(name, nn.CrossEntropyLoss(), learner)
    for _ in range(2):
        update.run(PLAN, *batch([[0, 1, 2], [2]]))
    [scheduler] = schedulers
    assert scheduler.get_last_lr() == [pytest.approx(0.025)]


@pytest.mark.parametrize("name", SERVER_UPDATES)
def test_clipping_is_by_the_server_segment_alone(split: SplitModel, name: str) -> None:
    # A gradient that nobody asked for: clipping must not see it.
    for parameter in split.client.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    before = [parameter.detach().clone() for parameter in split.server.parameters()]
    update = make(name, nn.CrossEntropyLoss(), learner_of(split, max_grad_norm=0.01))
    plan = StepPlan(server_round=1, step=1, batch_sizes={2: 3}, starts={2: 0})
    update.run(plan, *batch([[0, 1, 2]]))
    update.end_round()
    moved = [p.detach() - old for p, old in zip(split.server.parameters(), before, strict=True)]
    assert float(torch.cat([m.reshape(-1) for m in moved]).norm()) == pytest.approx(0.1 * 0.01)


def test_a_loss_that_is_no_mean_over_examples_is_refused(split: SplitModel) -> None:
    def total(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="sum")

    def worst(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none").max()

    for loss_fn in (total, worst):
        before = split.state_dict()["2.weight"].clone()
        with pytest.raises(
            PslError, match=r"round 1, step 1: the loss .*the clients' own losses .* Give loss_fn"
        ):
            make("global-batch", loss_fn, learner_of(split)).run(PLAN, *batch([[0, 1, 2], [2]]))
        assert torch.equal(split.state_dict()["2.weight"], before)

    total.reduction = "sum"  # type: ignore[attr-defined]
    make("global-batch", total, learner_of(split)).run(PLAN, *batch([[0, 1, 2], [2]]))


def with_batch_norm() -> SplitModel:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return cut(model.double(), at="1")


@pytest.mark.parametrize("name", ["per-client-average", "per-client-sequential"])
def test_nothing_is_learned_from_a_part_that_cannot_be_computed(name: str) -> None:
    split, alone = with_batch_norm(), with_batch_norm()
    alone.load_state_dict(split.state_dict())
    plan = replace(PLAN, batch_sizes={2: 3, 5: 2})
    activations, labels = batch([[0, 1, 2], [2, 0]])
    update = make(name, nn.CrossEntropyLoss(), learner_of(split))
    turn = update.run(plan, [activations[0], activations[1] * torch.inf], labels)
    update.end_round()
    [(key, failure)] = turn.failures.items()
    assert key == 5
    assert re.search("client 5, round 1, step 1: the loss is nan; it must be", str(failure))
    reference = make(name, nn.CrossEntropyLoss(), learner_of(alone))
    expected = reference.run(plan.of([2]), activations[:1], labels[:1])
    reference.end_round()
    assert turn.loss == expected.loss
    assert torch.equal(turn.cut_gradients[0], expected.cut_gradients[0])
    assert all(map(torch.equal, split.state_dict().values(), alone.state_dict().values()))


@pytest.mark.parametrize("name", SERVER_UPDATES)
def test_a_step_of_which_no_part_can_be_computed_is_no_step(name: str) -> None:
    split = with_batch_norm()
    before = copy.deepcopy(split.state_dict())
    plan = replace(PLAN, batch_sizes={2: 3, 5: 2})
    activations, labels = batch([[0, 1, 2], [2, 0]])
    update = make(name, nn.CrossEntropyLoss(), learner_of(split))
    with (
        pytest.raises((DiscardedError, PslError), match="the loss is nan"),
        kept_buffers(ModuleIndex(split.server)),
    ):
        update.run(plan, [part * torch.inf for part in activations], labels)
    update.end_round()
    for tensor, old in zip(split.state_dict().values(), before.values(), strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("name", ["per-client-average", "per-client-sequential"])
@pytest.mark.parametrize("server_round", [1, 2])
def test_a_part_for_which_the_loss_raises_is_its_clients_once_steps_were_taken(
    split: SplitModel, name: str, server_round: int
) -> None:
    plan = replace(PLAN, server_round=server_round)
    activations, labels = batch([[0, 1, 2], [9]])
    update = make(name, nn.CrossEntropyLoss(), learner_of(split))
    if server_round == 1:
        # Unless it is the first of the step, which is then in the middle.
        reason = r"client 5, round 1, step 1: .* raised IndexError"
        with pytest.raises((PslError, TornError), match=reason):
            update.run(plan, activations, labels)
    else:
        assert list(update.run(plan, activations, labels).failures) == [5]


@pytest.mark.parametrize("name", SERVER_UPDATES)
def test_a_round_goes_on_from_its_state_with_the_same_bits(split: SplitModel, name: str) -> None:
    other = copy.deepcopy(split)
    learner, resumed = (learner_of(each, optimizer_fn=momentum) for each in (split, other))
    update, again = (make(name, nn.CrossEntropyLoss(), each) for each in (learner, resumed))
    update.run(PLAN, *batch([[0, 1, 2], [2]]))
    saved = b"".join(pack_state({"learner": learner.state(), "update": update.state()}))
    state = unpack_state(saved, "here")
    resumed.load_state(state["learner"])
    again.load_state(state["update"])
    for each in (update, again):
        each.run(replace(PLAN, step=2), *batch([[1, 1, 0], [0]]))
        each.end_round()
        each.run(replace(PLAN, server_round=2), *batch([[0, 2, 0], [1]]))
    assert all(map(torch.equal, split.parameters(), other.parameters()))
