import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flower_psl.split.cut import cut
from flower_psl.split.findings import find, random_modules
from flower_psl.split.report import Finding, FindingKind


def found(model: nn.Module, at: str, x: Tensor) -> tuple[Finding, ...]:
    return find(cut(model, at), lambda client: torch.as_tensor(client(x)))


def names(findings: tuple[Finding, ...]) -> list[tuple[FindingKind, str, str]]:
    return [(finding.kind, finding.segment, finding.module) for finding in findings]


def net(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def test_a_model_without_surprises_has_no_findings() -> None:
    model = net(
        conv=nn.Conv2d(1, 4, 3),
        norm=nn.GroupNorm(2, 4),
        cut=nn.ReLU(),
        pool=nn.Conv2d(4, 2, 2),
        server_norm=nn.BatchNorm2d(2),  # sees the whole global batch
        no_drop=nn.Dropout(0.0),
    )
    assert found(model, "cut", torch.randn(4, 1, 6, 6)) == ()


@pytest.mark.parametrize("tracks", [True, False])
def test_batch_norm_in_the_client_segment(tracks: bool) -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=tracks)
    model = net(conv=nn.Conv2d(1, 4, 3), norm=norm, cut=nn.ReLU(), end=nn.Flatten())
    findings = found(model, "cut", torch.randn(4, 1, 6, 6))
    assert names(findings) == [(FindingKind.BATCH_NORM, "client", "norm")]
    assert "min_client_batch" in findings[0].message
    assert "to_group_norm" in findings[0].message


def test_random_layers_on_both_sides() -> None:
    model = net(a=nn.Linear(2, 2), drop=nn.Dropout(), cut=nn.ReLU(), rrelu=nn.RReLU())
    findings = found(model, "cut", torch.randn(4, 2))
    assert names(findings) == [
        (FindingKind.RANDOM, "client", "drop"),
        (FindingKind.RANDOM, "server", "rrelu"),
    ]
    assert "in distribution only" in findings[0].message


class DrawsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.5, self.training)


def test_a_layer_that_draws_itself_is_found_around_one_that_does() -> None:
    model = net(a=DrawsItself(), b=nn.Linear(2, 2)).train()
    assert random_modules(model, lambda: model(torch.ones(3, 2))) == ["a.inner", "a"]
    assert [name for name, m in model.named_modules() if not m.training] == ["a", "a.inner"]


def test_a_layer_that_draws_in_evaluation_mode_too_is_found_once() -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, True)

    model = net(a=Always())
    assert random_modules(model, lambda: model(torch.ones(3, 2))) == ["a"]


class Counter(nn.Module):
    """Counts its calls, in place or in a new tensor."""

    calls: Tensor

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm1d(2, track_running_stats=True), Counter(True), Counter(False)]
)
def test_changing_buffers_in_the_client_segment(layer: nn.Module) -> None:
    model = net(a=nn.Conv1d(2, 2, 1), layer=layer, cut=nn.ReLU(), b=copy.deepcopy(layer))
    findings = found(model, "cut", torch.randn(4, 2, 3))
    assert names(findings) == [(FindingKind.BUFFER, "client", "layer")]
    assert "training refuses this segment" in findings[0].message
    assert "Put the layer behind the cut" in findings[0].message


def test_a_client_segment_with_nothing_to_train() -> None:
    model = net(a=nn.Linear(2, 2).requires_grad_(False), cut=nn.ReLU(), b=nn.Linear(2, 1))
    findings = found(model, "cut", torch.randn(4, 2))
    assert names(findings) == [(FindingKind.FROZEN, "client", "")]
    assert "no gradients are sent back" in findings[0].message


def test_the_split_and_the_generator_stay_as_they_are() -> None:
    model = net(a=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), drop=nn.Dropout(), b=nn.Linear(2, 2))
    split = cut(model.eval(), "drop")
    state = {name: tensor.clone() for name, tensor in split.state_dict().items()}
    x = torch.randn(4, 2)
    generator = torch.get_rng_state()
    find(split, lambda client: torch.as_tensor(client(x)))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in split.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())
