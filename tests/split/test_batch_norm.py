import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flower_psl import ProtocolError
from flower_psl.split import batch_norm_layers, check_moments, update_running_statistics
from flower_psl.split.batch_norm import merge_moments, record_moments

Moments = dict[str, Tensor]


def moments_of(segment: nn.Module, x: Tensor) -> Moments:
    """Run a copy, so that only the merge changes the segment."""
    twin = copy.deepcopy(segment).train()
    with record_moments(twin) as moments:
        twin(x)
    return moments


class Twice(nn.Module):
    """Calls one layer twice in a forward pass, on inputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        # The second input does not come from the first call, which normalizes by part.
        output: Tensor = self.norm(x).mean() + self.norm(x[..., ::2] * 3 + 1).mean()
        return output


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=5),
    momentum=st.sampled_from([0.1, 0.7, None]),
    steps=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_merged_statistics_are_those_of_the_global_batch(
    sizes: list[int], momentum: float | None, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = nn.BatchNorm2d(3, momentum=momentum).double()
    reference = copy.deepcopy(ours)
    for _ in range(steps):
        shape = (sum(sizes), 3, 4, 2)
        batch = 10 * torch.randn(shape, generator=generator, dtype=torch.float64) + 100
        update_running_statistics(
            ours, [moments_of(ours, part) for part in torch.split(batch, sizes)]
        )
        reference(batch)
    for name, expected in reference.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), expected, rtol=1e-12, atol=0)
    assert ours.num_batches_tracked == steps


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)])
def test_vectors_have_one_position_an_example(layer: nn.BatchNorm1d) -> None:
    batch = torch.randn(7, 3)
    reference = copy.deepcopy(layer)
    update_running_statistics(
        layer, [moments_of(layer, part) for part in torch.split(batch, [2, 5])]
    )
    reference(batch)
    for name, expected in reference.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_that_runs_twice_is_updated_twice(momentum: float | None) -> None:
    ours = Twice().double()
    ours.norm.momentum = momentum
    reference = copy.deepcopy(ours)
    batch = torch.randn(8, 3, 4, 4).double()
    parts = [moments_of(ours, part) for part in torch.split(batch, [3, 5])]
    assert [part["norm.count"].tolist() for part in parts] == [[48, 24], [80, 40]]
    update_running_statistics(ours, parts)
    reference(batch)
    for name, expected in reference.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), expected)
    assert ours.norm.num_batches_tracked == 2


def test_the_merge_is_the_formula_by_hand() -> None:
    parts: list[Moments] = [
        {"bn.mean": _row(1.0), "bn.var": _row(2.0), "bn.count": torch.tensor([1])},
        {"bn.mean": _row(5.0), "bn.var": _row(6.0), "bn.count": torch.tensor([3])},
    ]
    mean, var, count = merge_moments(parts, "bn")
    # mean = (1 * 1 + 3 * 5) / 4; var = (1 * (2 + 1) + 3 * (6 + 25)) / 4 - 4^2
    assert (mean.item(), var.item(), count.item()) == (4.0, 8.0, 4)


def _row(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def test_a_part_of_one_position_gives_a_finite_variance() -> None:
    layer = nn.BatchNorm1d(1)
    parts = [{".mean": _row(3.0), ".var": _row(0.0), ".count": torch.tensor([1])}]
    update_running_statistics(layer, parts)
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_var, torch.tensor([0.9]))


def test_moments_are_of_all_layers_with_statistics_in_training_mode() -> None:
    segment = nn.Sequential(
        nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)
    )
    assert list(batch_norm_layers(segment)) == ["0", "2"]
    with record_moments(segment) as moments:
        segment(torch.rand(4, 3))
    assert set(moments) == {
        f"{layer}.{part}" for layer in "02" for part in ("mean", "var", "count")
    }
    segment.eval()
    with record_moments(segment) as moments:
        segment(torch.rand(4, 3))
    assert moments == {}


def test_recording_ends_with_its_block() -> None:
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value"), record_moments(layer):
        layer(torch.rand(1, 3))
    assert not layer._forward_pre_hooks


def test_a_layer_that_nobody_reached_stays() -> None:
    segment = nn.ModuleDict({"used": nn.BatchNorm1d(1), "idle": nn.BatchNorm1d(1)})
    parts = [{"used.mean": _row(3.0), "used.var": _row(1.0), "used.count": torch.tensor([4])}]
    update_running_statistics(segment, parts)
    assert segment["used"].num_batches_tracked == 1
    assert segment["idle"].num_batches_tracked == 0


def test_a_layer_that_one_client_did_not_reach_takes_the_others() -> None:
    ours, reference = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    batch = torch.rand(6, 2)
    update_running_statistics(
        ours, [moments_of(ours, part) for part in torch.split(batch, 3)] + [{}]
    )
    reference(batch)
    assert ours.running_mean is not None
    assert reference.running_mean is not None
    torch.testing.assert_close(ours.running_mean, reference.running_mean)


def test_different_numbers_of_calls_are_refused() -> None:
    segment = Twice()
    once = {"norm.mean": torch.zeros(1, 3), "norm.var": torch.ones(1, 3)}
    parts = [moments_of(segment, torch.rand(2, 3, 4, 4)), once | {"norm.count": torch.tensor([9])}]
    with pytest.raises(ProtocolError, match=r"'norm' ran \[1, 2\] times .*equally often.*Put it"):
        update_running_statistics(segment, parts)


def test_what_a_segment_records_passes_the_check() -> None:
    segment = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    moments = moments_of(segment, torch.rand(2, 3, 4, 4))
    before = copy.deepcopy(moments)
    check_moments(segment, moments, "client 1")
    check_moments(segment, {}, "client 1")
    assert all(torch.equal(moments[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm.mean", torch.zeros(1, 4).double()),
        ("norm.mean", torch.zeros(3).double()),
        ("norm.mean", torch.zeros(1, 3)),
        ("norm.mean", torch.full((1, 3), torch.nan).double()),
        ("norm.var", torch.full((1, 3), torch.inf).double()),
        ("norm.var", torch.full((1, 3), -1.0).double()),
        ("norm.var", torch.zeros(2, 3).double()),
        ("norm.count", torch.tensor(4)),
        ("norm.count", torch.tensor([[4]])),
        ("norm.count", torch.tensor([0])),
        ("norm.count", torch.tensor([4.0])),
        ("norm.count", torch.tensor([4, 4])),
        ("norm.count", torch.tensor([2**40 + 1])),
        ("norm.mean", torch.full((1, 3), 1e20).double()),
        ("norm.mean", torch.full((1, 3), -1e300, dtype=torch.float64)),
        ("norm.var", torch.full((1, 3), 1e38).double()),
        ("norm.count", None),
        ("norm.mean", None),
    ],
)
def test_moments_that_cannot_be_are_refused(name: str, value: Tensor | None) -> None:
    segment = nn.ModuleDict({"norm": nn.BatchNorm1d(3)})
    moments = {
        "norm.mean": torch.zeros(1, 3).double(),
        "norm.var": torch.ones(1, 3).double(),
        "norm.count": torch.tensor([4]),
    }
    if value is None:
        del moments[name]
    else:
        moments[name] = value
    with pytest.raises(
        ProtocolError, match=r"client 1, round 2: .*'norm' have .* of shape .*Look"
    ):
        check_moments(segment, moments, "client 1, round 2")


def test_moments_of_more_calls_than_any_pass_has_are_refused() -> None:
    segment = nn.ModuleDict({"norm": nn.BatchNorm1d(3)})
    moments = {
        "norm.mean": torch.zeros(1001, 3).double(),
        "norm.var": torch.ones(1001, 3).double(),
        "norm.count": torch.ones(1001, dtype=torch.int64),
    }
    with pytest.raises(ProtocolError, match=r"client 1: .* for at most 1000 calls. Look"):
        check_moments(segment, moments, "client 1")
    check_moments(segment, {name: part[:1000] for name, part in moments.items()}, "client 1")


def test_the_greatest_moments_that_pass_leave_statistics_finite() -> None:
    layer = nn.BatchNorm1d(1)
    greatest = torch.finfo(torch.float32).max / 8
    parts = [
        {
            "0.mean": torch.tensor([[sign * greatest**0.5]], dtype=torch.float64),
            "0.var": torch.zeros(1, 1).double(),
            "0.count": torch.tensor([count]),
        }
        for sign, count in ((1, 1), (-1, 1), (0.99, 2**40))
    ]
    segment = nn.Sequential(layer)
    for part in parts:
        check_moments(segment, part, "client 1")
    for chosen in (parts, parts[:2]):
        for _ in range(1000):
            update_running_statistics(segment, chosen)
        assert layer.running_var is not None
        assert bool(torch.isfinite(layer.running_var).all())


def test_moments_of_an_unknown_layer_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"client 1: .* for \['x.mean'\];.*\['norm'\]. Build"):
        check_moments(
            nn.ModuleDict({"norm": nn.BatchNorm1d(3)}), {"x.mean": torch.zeros(1, 3)}, "client 1"
        )
