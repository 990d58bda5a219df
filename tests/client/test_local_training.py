"""A device that updates its segment by itself, asked as a server asks it."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import ConfigError, ProtocolError, SplitClient
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepReply, StepRequest

DATA = TensorDataset(
    torch.rand(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12)
)


def step(number: int) -> StepId:
    return StepId(
        seed=1,
        server_round=1,
        plan=0,
        step=number,
        client_key=5,
        start=4 * (number - 1),
        batch_size=4,
    )


def segment() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 2))


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.1)


WEIGHTS = ModuleIndex(segment()).tensors


def device(
    optimizer_fn: Callable[[Iterable[nn.Parameter]], Optimizer] | None = adam,
) -> SplitClient:
    return SplitClient(segment().to("meta"), DATA, DATA, optimizer_fn=optimizer_fn)


def gradient(number: int) -> Tensor:
    return torch.linspace(-1, number, 8).reshape(4, 2)


def train(number: int, **changes: Any) -> StepRequest:
    """Return the request for a step, with the gradient of the one before it."""
    fields: dict[str, Any] = {"phase": Phase.TRAIN, "id": step(number)}
    if number == 1:
        fields["weights"] = WEIGHTS
    else:
        fields |= {"previous": step(number - 1), "gradient": gradient(number - 1)}
    return StepRequest(**(fields | changes))


def collect(number: int, phase: Phase = Phase.COLLECT) -> StepRequest:
    return StepRequest(phase=phase, id=step(number), gradient=gradient(number))


ROUND = [train(1), train(2), train(3), collect(3)]


def assert_same(left: StepReply, right: StepReply) -> None:
    assert (left.phase, left.id) == (right.phase, right.id)
    for ours, theirs in ((left.activations, right.activations), (left.labels, right.labels)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.equal(ours, theirs)
    assert_equal(left.weights, right.weights)


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_round_is_that_of_a_plain_loop() -> None:
    client = SplitClient(
        segment()[:2], DATA, optimizer_fn=lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)
    )
    model = copy.deepcopy(segment()[:2])
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    weights = ModuleIndex(model).tensors
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    requests = [
        train(1, weights=weights),
        train(2, gradient=torch.ones(4, 4)),
        train(3, gradient=2 * torch.ones(4, 4)),
        replace(collect(3), gradient=3 * torch.ones(4, 4)),
    ]
    for number, request in enumerate(requests, 1):
        reply = client.handle(request)
        if reply.labels is None:
            break
        optimizer.zero_grad()
        output = model(DATA.tensors[0][reply.labels])
        assert reply.activations is not None
        torch.testing.assert_close(reply.activations, output)
        output.backward(number * torch.ones(4, 4))
        optimizer.step()
    assert list(reply.weights) == [
        *("0.weight", "0.bias", "1.weight", "1.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    ]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reply.weights[name], tensor)


def test_what_was_given_stays_as_it_is() -> None:
    before = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    client = device()
    replies = [client.handle(request) for request in ROUND]
    assert_equal(WEIGHTS, before)
    # What was returned is not what goes on being trained.
    kept = {name: tensor.clone() for name, tensor in replies[-1].weights.items()}
    client.handle(train(4, previous=None, gradient=None, id=step(1)))
    client.handle(collect(1))
    assert_equal(replies[-1].weights, kept)


def test_the_same_request_gets_the_same_answer() -> None:
    once, twice = device(), device()
    for request in ROUND:
        answer = once.handle(request)
        assert_same(twice.handle(request), answer)
        assert_same(twice.handle(request), answer)


def test_a_graph_that_was_freed_is_computed_again() -> None:
    keeping, forgetting = device(), device()
    for request in ROUND:
        forgetting.forget()
        assert_same(forgetting.handle(request), keeping.handle(request))


def test_another_process_goes_on_from_the_state() -> None:
    here, state = device(), None
    for request in ROUND:
        there = device()
        there.local.state = state
        assert_same(there.handle(request), here.handle(request))
        state = there.local.state
        assert state is not None
    there.local.state = None
    assert there.local.state is None
    assert there.local.weights is None


def test_weights_start_anew_with_a_new_optimizer() -> None:
    client = device()
    first = [client.handle(request) for request in ROUND]
    again = [client.handle(request) for request in ROUND]
    for left, right in zip(first, again, strict=True):
        assert_same(left, right)


def test_without_weights_a_device_goes_on_with_what_it_has() -> None:
    client = device()
    client.handle(train(1))
    settled = client.handle(collect(1, Phase.SETTLE))
    assert settled.weights == {}
    own = client.local.weights
    assert own is not None
    assert not torch.equal(own["0.weight"], WEIGHTS["0.weight"])
    reply = client.handle(StepRequest(phase=Phase.EVALUATE, id=step(1)))
    model = segment()
    model.load_state_dict(own)
    assert reply.activations is not None
    torch.testing.assert_close(reply.activations, model.eval()(DATA.tensors[0][:4]))
    # The optimizer goes on, too: with a new one the step would be another.
    client.handle(train(2, previous=None, gradient=None))
    fresh = device()
    fresh.handle(train(2, previous=None, gradient=None, weights=own))
    theirs = fresh.handle(collect(2)).weights
    assert not torch.equal(client.handle(collect(2)).weights["0.weight"], theirs["0.weight"])


def test_evaluation_with_weights_uses_those() -> None:
    client = device()
    client.handle(train(1))
    client.handle(collect(1, Phase.SETTLE))
    request = StepRequest(phase=Phase.EVALUATE, id=step(1), weights=WEIGHTS)
    reply, other = client.handle(request), device().handle(request)
    assert_same(reply, other)


def test_a_device_without_an_optimizer_cannot_train_by_itself() -> None:
    assert device().describe().has_optimizer
    client = device(None)
    assert not client.describe().has_optimizer
    with pytest.raises(ConfigError, match=r"no optimizer_fn; with client_sync='round' and 'none'"):
        client.handle(train(1))
    with pytest.raises(ConfigError, match=r"optimizer_fn is a float; it must be a function of"):
        SplitClient(segment(), DATA, optimizer_fn=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([train(2)], r"step 2: a train request without weights, but the device has none .* Start"),
        ([collect(1)], r"step 1: a collect request without weights, but the device has none"),
        ([train(1), train(3)], r"step 2: a gradient came, but the device waits for .*step 1;"),
        ([train(1), collect(1), collect(2)], r"step 2: a gradient came, but .* for that of no st"),
        (
            [train(1), train(2, previous=None, gradient=None)],
            r"step 2: client 5, round 1, step 1 still waits for its gradient, .* Let the server",
        ),
        (
            [train(1), train(2, gradient=torch.ones(4, 3))],
            r"step 1: a cut gradient of shape \(4, 3\) for activations of shape \(4, 2\)",
        ),
        (
            [train(1, weights={"0.bias": WEIGHTS["0.bias"]})],
            r"step 1: a forward request without the weights \['0.weight', .* Build the same",
        ),
    ],
)
def test_a_request_that_does_not_follow_is_refused(
    requests: list[StepRequest], reason: str
) -> None:
    client = device()
    *before, last = requests
    for request in before:
        client.handle(request)
    with pytest.raises(ProtocolError, match=reason):
        client.handle(last)


def test_tied_parameters_stay_tied() -> None:
    def tied() -> nn.Sequential:
        layer = nn.Linear(3, 3)
        return nn.Sequential(layer, nn.Tanh(), layer)

    model = tied()
    weights = ModuleIndex(model).tensors
    client = SplitClient(tied().to("meta"), DATA, optimizer_fn=lambda p: SGD(p, lr=0.1))
    reply = client.handle(train(1, weights=weights))
    assert reply.labels is not None
    model(DATA.tensors[0][reply.labels]).backward(torch.ones(4, 3))
    SGD(model.parameters(), lr=0.1).step()
    trained = client.handle(replace(collect(1), gradient=torch.ones(4, 3))).weights
    assert list(trained) == ["0.weight", "0.bias"]
    torch.testing.assert_close(trained["0.weight"], next(model.parameters()).detach())


def weights_of(client: SplitClient) -> dict[str, Tensor]:
    reply = client.handle(StepRequest(phase=Phase.COLLECT, id=step(9), forget=True))
    return dict(reply.weights)


def test_a_step_that_was_discarded_is_as_if_it_had_never_been() -> None:
    straight, disturbed = device(), device()
    for client in (straight, disturbed):
        client.handle(train(1))
    again = step(2)._replace(plan=1)
    straight.handle(train(2, id=again))
    disturbed.handle(train(2))  # brings the gradient of step 1, and is discarded
    disturbed.handle(StepRequest(phase=Phase.TRAIN, id=again, forget=True))
    last = StepRequest(phase=Phase.COLLECT, id=again, gradient=gradient(2))
    expected, found = straight.handle(last), disturbed.handle(last)
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name], tensor)


def test_a_gradient_that_is_sent_again_after_a_failure_is_taken_once() -> None:
    straight, disturbed = device(), device()
    for client in (straight, disturbed):
        client.handle(train(1))
        client.handle(train(2))
    # The server did not hear of step 2: it sends the gradient of step 1 again.
    disturbed.handle(train(2, id=step(3), forget=True))
    expected, found = weights_of(straight), weights_of(disturbed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_gradient_that_has_not_come_yet_is_taken_though_another_step_is_forgotten() -> None:
    straight, returned = device(), device()
    for client in (straight, returned):
        client.handle(train(1))
    straight.handle(train(2))
    returned.handle(train(2, id=step(3), forget=True))
    expected, found = weights_of(straight), weights_of(returned)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_tells_whether_it_has_a_segment_of_its_own() -> None:
    client = device()
    assert not client.describe().has_segment
    client.handle(train(1))
    assert client.describe().has_segment
