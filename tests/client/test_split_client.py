import copy
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from flower_psl import ConfigError, ProtocolError, SplitClient
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepReply, StepRequest, TensorSpec

IMAGES = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, torch.arange(10))
ID = StepId(seed=1, server_round=1, plan=0, step=1, client_key=5, start=0, batch_size=4)


class Augmented(Dataset[Any]):
    """Adds noise from torch's generator, as transforms do."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index] + torch.rand(()), index


def segment(dropout: float = 0.5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))


WEIGHTS = ModuleIndex(segment()).tensors


def forward(client: SplitClient, step: StepId = ID, phase: Phase = Phase.FORWARD) -> StepReply:
    return client.handle(StepRequest(phase=phase, id=step, weights=WEIGHTS))


def backward(
    client: SplitClient, step: StepId = ID, *, with_weights: bool = False
) -> dict[str, Tensor]:
    gradient = torch.linspace(-1, 1, step.batch_size * 16).reshape(-1, 4, 2, 2)
    request = StepRequest(
        phase=Phase.BACKWARD,
        id=step,
        gradient=gradient,
        weights=WEIGHTS if with_weights else {},
    )
    return dict(client.handle(request).gradients)


def activations(reply: StepReply) -> Tensor:
    assert reply.activations is not None
    return reply.activations


def labels(reply: StepReply) -> list[int]:
    assert reply.labels is not None
    values: list[int] = reply.labels.tolist()
    return values


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_a_step_is_that_of_autograd_in_one_piece() -> None:
    client = SplitClient(segment(dropout=0), DATA)
    reply = forward(client)
    gradients = backward(client)

    whole = segment(dropout=0)
    output = whole(IMAGES[labels(reply)])
    output.backward(torch.linspace(-1, 1, 64).reshape(4, 4, 2, 2))
    assert torch.equal(activations(reply), output)
    assert (reply.phase, reply.id) == (Phase.FORWARD, ID)
    assert_equal(gradients, {name: cast(Tensor, p.grad) for name, p in whole.named_parameters()})
    torch.testing.assert_close(
        reply.moments["1.mean"], whole[0](IMAGES[labels(reply)]).mean((0, 2, 3))[None].double()
    )


@pytest.mark.parametrize("dataset", [DATA, Augmented()])
def test_a_repeated_forward_gives_the_same_bits(dataset: Dataset[Any]) -> None:
    client = SplitClient(segment(), cast(TensorDataset, dataset))
    first = forward(client)
    forward(client, ID._replace(step=2, start=4))
    torch.rand(7)
    again = forward(client)
    assert torch.equal(activations(first), activations(again))
    assert labels(first) == labels(again)
    assert not torch.equal(activations(first), activations(forward(client, ID._replace(step=2))))


@pytest.mark.parametrize("make", [lambda: DATA, Augmented])
def test_a_recomputed_backward_gives_the_same_bits(make: Callable[[], TensorDataset]) -> None:
    client, elsewhere = SplitClient(segment(), make()), SplitClient(segment(), make())
    forward(client)
    cached = backward(client)
    assert_equal(backward(elsewhere, with_weights=True), cached)
    client.handle(StepRequest(phase=Phase.FORWARD, id=ID, weights=WEIGHTS))
    client.forget()
    assert not client.holds(ID)
    assert_equal(backward(client, with_weights=True), cached)


def test_a_forgotten_step_is_not_answered_from_memory() -> None:
    client = SplitClient(segment(), DATA)
    forward(client)
    backward(client)
    assert client.holds(ID)
    client.forget()
    assert not client.holds(ID)
    with pytest.raises(ProtocolError, match=r"client 5, round 1, step 1: a gradient .* not known"):
        backward(client)


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.EVALUATE])
def test_a_forward_without_all_weights_is_refused(phase: Phase) -> None:
    client = SplitClient(segment(), DATA, DATA)
    absent = ["0.bias", "1.running_var"]
    weights = {name: tensor for name, tensor in WEIGHTS.items() if name not in absent}
    with pytest.raises(
        ProtocolError,
        match=r"^client 5, round 1, step 1: a forward request without the weights "
        r"\['0.bias', '1.running_var'\]; it must bring all 7 parameters and buffers.*Build the",
    ):
        client.handle(StepRequest(phase=phase, id=ID, weights=weights))


@pytest.mark.parametrize(
    ("weight", "shown"),
    [
        (torch.zeros(1), r"torch.float32 \(1,\); here it is torch.float"),  # would broadcast
        (WEIGHTS["0.bias"].to(torch.int64), "torch.int64 .*; here it is torch.float"),
    ],
)
def test_a_forward_with_a_weight_of_another_kind_is_refused(weight: Tensor, shown: str) -> None:
    weights = {**WEIGHTS, "0.bias": weight}
    with pytest.raises(
        ProtocolError, match=rf"^client 5, round 1, step 1: '0.bias' travelled as {shown}.* Build"
    ):
        SplitClient(segment(), DATA).handle(
            StepRequest(phase=Phase.FORWARD, id=ID, weights=weights)
        )


def test_a_backward_with_some_of_the_weights_is_refused() -> None:
    request = StepRequest(
        phase=Phase.BACKWARD,
        id=ID,
        gradient=torch.zeros(4, 4, 2, 2),
        weights={"0.weight": WEIGHTS["0.weight"]},
    )
    with pytest.raises(ProtocolError, match=r"without the weights \['0.bias', '1.weight', .* 7 p"):
        SplitClient(segment(), DATA).handle(request)


def test_parameters_that_the_activations_do_not_depend_on_are_named() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.frozen = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.used(x)
            return output

    partly = Partly()
    client = SplitClient(partly, TensorDataset(torch.rand(10, 4), torch.arange(10)))
    weights = ModuleIndex(partly).tensors
    client.handle(StepRequest(phase=Phase.FORWARD, id=ID, weights=weights))
    reply = client.handle(StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.ones(4, 2)))
    assert set(reply.gradients) == {"used.weight", "used.bias"}
    assert reply.unused == ("spare.weight", "spare.bias")


class Token:
    """Lives as long as the graph that it is kept in."""

    alive: ClassVar[weakref.WeakSet["Token"]] = weakref.WeakSet()

    def __init__(self) -> None:
        Token.alive.add(self)


class Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.token = Token()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Trace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = Traced.apply(x)
        return output


def test_a_graph_lives_until_its_backward_pass() -> None:
    client = SplitClient(segment().append(Trace()), DATA, DATA)
    forward(client)
    assert len(Token.alive) == 1
    backward(client)
    assert len(Token.alive) == 0
    forward(client, ID._replace(step=2))
    forward(client, ID._replace(step=3))
    assert len(Token.alive) == 1
    client.forget()
    assert len(Token.alive) == 0


def test_augmentation_and_layers_draw_from_streams_of_their_own() -> None:
    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x)

    seen: list[Tensor] = []

    def draw(examples: list[Any]) -> tuple[Tensor, Tensor]:
        seen.append(torch.rand(len(examples), 3))
        return seen[-1], torch.zeros(len(examples))

    reply = forward(SplitClient(Drawn(), DATA, collate_fn=draw))
    assert activations(reply).shape == seen[0].shape
    assert not torch.equal(activations(reply), seen[0])


def test_every_request_may_come_twice() -> None:
    client = SplitClient(segment(), DATA)
    first, second = forward(client), forward(client)
    assert torch.equal(activations(first), activations(second))
    gradients = backward(client)
    assert client.holds(ID)
    assert_equal(backward(client), gradients)
    forward(client)
    assert_equal(backward(client), gradients)


def test_another_run_with_the_same_ids_gets_gradients_of_its_own() -> None:
    client, fresh = SplitClient(segment(), DATA), SplitClient(segment(), DATA)
    forward(client)
    backward(client)
    other = {
        name: 2 * tensor if tensor.is_floating_point() else tensor
        for name, tensor in WEIGHTS.items()
    }
    for each in (client, fresh):
        each.handle(StepRequest(phase=Phase.FORWARD, id=ID, weights=other))
    assert_equal(backward(client), backward(fresh))


def test_an_unknown_forward_cannot_be_continued() -> None:
    client = SplitClient(segment(), DATA)
    forward(client)
    with pytest.raises(ProtocolError, match=r"client 5, round 1, step 2: a gradient .* not known"):
        backward(client, ID._replace(step=2))


def test_a_gradient_of_another_shape_is_refused() -> None:
    client = SplitClient(segment(), DATA)
    forward(client)
    request = StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.zeros(4, 3))
    with pytest.raises(
        ProtocolError, match=r"step 1: a cut gradient of shape \(4, 3\) for .*\(4, 4, 2, 2\)"
    ):
        client.handle(request)


@pytest.mark.parametrize("client_key", [0, 5])
def test_a_round_uses_every_example_once(client_key: int) -> None:
    client = SplitClient(segment(), DATA)
    rounds = []
    for server_round in (1, 2):
        used: list[int] = []
        for step, (start, batch_size) in enumerate([(0, 3), (3, 5), (8, 2)], 1):
            position = (server_round - 1) * len(DATA) + start
            where = StepId(1, server_round, 0, step, client_key, position, batch_size)
            used += labels(forward(client, where))
        assert sorted(used) == list(range(10))
        rounds.append(used)
    assert rounds[0] != rounds[1]


def test_a_pass_through_the_data_may_take_several_rounds() -> None:
    client = SplitClient(segment(), DATA)
    in_one_round = [
        labels(forward(client, ID._replace(start=start, batch_size=5))) for start in (0, 5)
    ]
    in_two = [
        labels(forward(client, ID._replace(server_round=rnd, start=start, batch_size=5)))
        for rnd, start in [(1, 0), (2, 5)]
    ]
    assert in_two == in_one_round


class Counted(Augmented):
    """Counts how often an example is loaded."""

    def __init__(self) -> None:
        self.loaded = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded += 1
        return super().__getitem__(index)


def test_a_batch_that_was_loaded_ahead_is_used_once_and_is_the_same() -> None:
    counted = Counted()
    ahead, plain = SplitClient(segment(), counted), SplitClient(segment(), Augmented())
    ahead.prepare(ID)
    assert counted.loaded == 4
    for loaded in (4, 8):  # a repeated forward pass loads anew
        reply, expected = forward(ahead), forward(plain)
        assert torch.equal(activations(reply), activations(expected))
        assert labels(reply) == labels(expected)
        assert counted.loaded == loaded


def test_a_batch_that_was_loaded_for_another_step_is_not_used() -> None:
    client = SplitClient(segment(), DATA, DATA)
    client.prepare(ID._replace(start=4))
    assert labels(forward(client)) == labels(forward(SplitClient(segment(), DATA)))
    assert labels(forward(client, phase=Phase.EVALUATE)) == [0, 1, 2, 3]


def test_what_does_not_exist_cannot_be_loaded_ahead() -> None:
    with pytest.raises(ProtocolError, match="examples 8 to 12 were asked for, of 10 in the train"):
        SplitClient(segment(), DATA).prepare(ID._replace(start=8))


def test_clients_have_orders_of_their_own() -> None:
    clients = [SplitClient(segment(), DATA) for _ in range(2)]
    orders = [
        labels(forward(client, ID._replace(client_key=key, batch_size=10)))
        for key, client in enumerate(clients)
    ]
    assert orders[0] != orders[1]


def test_evaluation_goes_through_the_test_data_in_order() -> None:
    test_set = TensorDataset(IMAGES, torch.arange(10, 20))
    client = SplitClient(segment(), DATA, test_set)
    reply = forward(client, ID._replace(start=2), Phase.EVALUATE)
    assert labels(reply) == [12, 13, 14, 15]
    assert torch.equal(activations(reply), segment().eval()(IMAGES[2:6]))
    assert reply.moments == {}


def test_an_evaluation_between_changes_nothing() -> None:
    client, undisturbed = SplitClient(segment(), DATA, DATA), SplitClient(segment(), DATA)
    forward(client)
    forward(client, phase=Phase.EVALUATE)
    forward(undisturbed)
    assert_equal(backward(client), backward(undisturbed))
    assert torch.equal(activations(forward(client)), activations(forward(undisturbed)))


def test_a_layer_left_in_evaluation_mode_does_not_depend_on_what_came_before() -> None:
    frozen = segment()
    frozen[1].eval()
    client = SplitClient(frozen, DATA, DATA)
    first = forward(client)
    forward(client, phase=Phase.EVALUATE)
    assert torch.equal(activations(forward(client)), activations(first))


def test_nothing_of_the_caller_or_the_process_changes() -> None:
    given = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    own = segment()
    before, state = copy.deepcopy(own.state_dict()), torch.get_rng_state()
    client = SplitClient(own, cast(TensorDataset, Augmented()), DATA)
    forward(client)
    backward(client)
    forward(client, phase=Phase.EVALUATE)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(WEIGHTS, given)
    assert_equal(dict(own.state_dict()), before)


@pytest.mark.parametrize(
    ("phase", "start", "batch_size"),
    [
        *(
            (phase, *part)
            for phase in (Phase.FORWARD, Phase.EVALUATE)
            for part in [(7, 4), (0, 11)]
        ),
        (Phase.EVALUATE, 10, 1),
    ],
)
def test_examples_that_do_not_exist_are_refused(phase: Phase, start: int, batch_size: int) -> None:
    client = SplitClient(segment(), DATA, DATA)
    where = ID._replace(start=start, batch_size=batch_size)
    with pytest.raises(
        ProtocolError,
        match=f"step 1: examples {start} to {start + batch_size} were asked for, of 10 in the t",
    ):
        forward(client, where, phase)


def test_evaluation_without_test_data_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"of 0 in the test data. The data set must keep"):
        forward(SplitClient(segment(), DATA), phase=Phase.EVALUATE)


def test_a_meta_segment_is_enough() -> None:
    with torch.device("meta"):
        meta = segment()
    ours, theirs = SplitClient(meta, DATA), SplitClient(segment(), DATA)
    assert torch.equal(activations(forward(ours)), activations(forward(theirs)))
    assert_equal(backward(ours), backward(theirs))
    assert ours.describe() == theirs.describe()


def test_a_client_describes_itself() -> None:
    client = SplitClient(nn.Linear(3, 2), DATA, TensorDataset(IMAGES[:4], torch.arange(4)))
    description = client.describe(9)
    assert (description.client_key, description.num_examples) == (9, 10)
    assert description.num_test_examples == 4
    assert description.segment == {
        "weight": TensorSpec((2, 3), "float32", True),
        "bias": TensorSpec((2,), "float32", True),
    }
    assert SplitClient(nn.Linear(3, 2), DATA).describe().num_test_examples == 0
    assert SplitClient(nn.Linear(3, 2), DATA).describe().client_key is None


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="segment is a str; it must be the client's module"):
        SplitClient(cast(nn.Module, "layer1"), DATA)


def test_a_data_set_that_is_not_map_style_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a map-style dataset"):
        SplitClient(segment(), DATA, cast(TensorDataset, iter([1])))
