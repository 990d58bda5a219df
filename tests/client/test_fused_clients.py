import re
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from flower_psl import ConfigError, ProtocolError, SplitClient
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepReply, StepRequest

NUM_EXAMPLES = 9


class TwoBranches(nn.Module):
    """Has a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 4)
        self.spare = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.used(x)
        return y.tanh()


def build(layers: Callable[[], nn.Module] = TwoBranches) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return layers().double()


def data(key: int) -> TensorDataset:
    draws = torch.Generator().manual_seed(key)
    return TensorDataset(
        torch.randn(NUM_EXAMPLES, 6, dtype=torch.float64, generator=draws),
        torch.randint(4, (NUM_EXAMPLES,), generator=draws),
    )


def clients(
    keys: tuple[int, ...] = (1, 4, 7), layers: Callable[[], nn.Module] = TwoBranches
) -> dict[int, SplitClient]:
    return {key: SplitClient(build(layers), data(key)) for key in keys}


def forwards(
    sizes: Mapping[int, int], layers: Callable[[], nn.Module] = TwoBranches
) -> list[StepRequest]:
    weights = ModuleIndex(build(layers)).tensors
    return [
        StepRequest(
            phase=Phase.FORWARD,
            id=StepId(
                seed=3, server_round=1, plan=0, step=2, client_key=key, start=1, batch_size=size
            ),
            weights=weights,
        )
        for key, size in sizes.items()
    ]


def backwards(requests: list[StepRequest]) -> list[StepRequest]:
    draws = torch.Generator().manual_seed(5)
    return [
        StepRequest(
            phase=Phase.BACKWARD,
            id=request.id,
            gradient=torch.randn(request.id.batch_size, 4, dtype=torch.float64, generator=draws),
        )
        for request in requests
    ]


def total(replies: list[StepReply], name: str) -> Tensor:
    return torch.stack([reply.gradients[name] for reply in replies if reply.gradients]).sum(0)


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.sampled_from([1, 4, 7]), st.integers(1, NUM_EXAMPLES - 1), min_size=1))
def test_the_answers_are_those_of_the_clients_one_by_one(sizes: dict[int, int]) -> None:
    alone, fused = clients(), SplitClient.fuse(clients())
    requests = forwards(sizes)
    apart = [alone[r.id.client_key].handle(r) for r in requests]
    together = fused.handle(requests)
    for one, other in zip(together, apart, strict=True):
        assert (one.phase, one.id) == (other.phase, other.id)
        assert one.activation_dtype == other.activation_dtype == torch.float64
        torch.testing.assert_close(one.activations, other.activations, rtol=1e-13, atol=1e-15)
        assert one.labels is not None and other.labels is not None
        assert torch.equal(one.labels, other.labels)

    requests = backwards(requests)
    apart = [alone[r.id.client_key].handle(r) for r in requests]
    together = fused.handle(requests)
    assert [reply.id for reply in together] == [reply.id for reply in apart]
    for name in ("used.weight", "used.bias"):
        torch.testing.assert_close(
            together[0].gradients[name], total(apart, name), rtol=1e-13, atol=1e-14
        )


def test_the_first_reply_has_the_sum_and_the_others_nothing() -> None:
    fused = SplitClient.fuse(clients())
    requests = forwards({1: 2, 4: 3, 7: 1})
    fused.handle(requests)
    first, *others = fused.handle(backwards(requests))
    assert list(first.gradients) == ["used.weight", "used.bias"]
    assert first.unused == ("spare.weight", "spare.bias")
    for reply in others:
        assert reply.gradients == {}
        assert reply.unused == ("used.weight", "used.bias", "spare.weight", "spare.bias")


def test_seconds_are_shared_out_by_examples() -> None:
    fused = SplitClient.fuse(clients())
    requests = forwards({1: 2, 4: 6})
    for asked in (requests, backwards(requests)):
        few, many = (reply.compute_s for reply in fused.handle(asked))
        assert 0 < few == pytest.approx(many / 3)


def test_a_second_step_goes_on_in_each_clients_own_data() -> None:
    alone, fused = clients(), SplitClient.fuse(clients())
    fused.handle(forwards({1: 2, 7: 4}))
    later = [
        StepRequest(phase=r.phase, id=r.id._replace(step=3, start=5), weights=r.weights)
        for r in forwards({4: 3, 7: 2})
    ]
    labels = [reply.labels for reply in fused.handle(later)]
    expected = [alone[r.id.client_key].handle(r).labels for r in later]
    for one, other in zip(labels, expected, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("change", ["none before", "twice", "other clients"])
def test_a_gradient_without_its_forward_pass_is_refused(change: str) -> None:
    fused = SplitClient.fuse(clients())
    requests = forwards({1: 2, 4: 3})
    asked = backwards(requests)
    if change != "none before":
        fused.handle(requests)
    if change == "twice":
        fused.handle(asked)
    if change == "other clients":
        asked.reverse()
    first = asked[0].id.client_key
    with pytest.raises(
        ProtocolError,
        match=f"^client {first}, round 1, step 2: a gradient came for 2 clients whose forward "
        "pass is not the last one here; .* Give each run clients of its own",
    ):
        fused.handle(asked)


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Dropout(), "'1' (Dropout) of the client segment draws random numbers"),
        (nn.BatchNorm1d(4), "'1' (BatchNorm1d) of the client segment mixes the examples"),
    ],
)
def test_a_layer_that_cannot_be_fused_is_refused(layer: nn.Module, what: str) -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), layer)

    fused = SplitClient.fuse(clients(layers=layers))
    with pytest.raises(ConfigError, match=re.escape(what)):
        fused.handle(forwards({1: 2, 4: 3}, layers))


def test_layers_are_looked_at_in_the_first_step_of_several_examples() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.Dropout())

    fused = SplitClient.fuse(clients(layers=layers))
    assert len(fused.handle(forwards({4: 1}, layers))) == 1
    with pytest.raises(ConfigError, match="draws random numbers"):
        fused.handle(forwards({1: 1, 4: 1}, layers))


class Augmented(TensorDataset):
    """Draws, unlike the class it is made of."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return torch.rand(6), self.tensors[1][index]


@pytest.mark.parametrize("kind", ["subclass", "collate_fn", "list"])
def test_data_that_may_be_drawn_are_refused(kind: str) -> None:
    odd = {
        "subclass": lambda: SplitClient(build(), Augmented(*data(4).tensors)),
        "collate_fn": lambda: SplitClient(build(), data(4), collate_fn=default_collate),
        "list": lambda: SplitClient(build(), [data(4)[0], data(4)[1]]),
    }[kind]()
    with pytest.raises(
        ConfigError,
        match=r"^client 4: its training data are not a TensorDataset without a collate_fn; any "
        "other dataset may draw random numbers, .* Leave out fuse_clients, or make tensors",
    ):
        SplitClient.fuse({**clients(), 4: odd})


def test_a_segment_or_device_that_is_not_the_others_is_refused() -> None:
    message = (
        "^client 4: its segment, on (cpu|meta), is not that of client 1, on cpu; one pass for all "
        "clients needs one segment on one device. Build the same model"
    )
    odd = SplitClient(build(lambda: nn.Linear(6, 4)), data(4))
    with pytest.raises(ConfigError, match=message):
        SplitClient.fuse({**clients(), 4: odd})
    with pytest.raises(ConfigError, match=message):
        SplitClient.fuse({**clients(), 4: SplitClient(build(), data(4), device="meta")})


def test_something_that_is_no_client_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"client 4 is a str; clients that run as one are all a SplitClient. Leave out",
    ):
        SplitClient.fuse({**clients(), 4: "a client"})
