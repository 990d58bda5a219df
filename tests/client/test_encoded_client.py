"""A device that decodes what it gets and encodes what it answers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import Encodings, ProtocolError, SplitClient
from flower_psl.split import ModuleIndex
from flower_psl.wire import (
    ENCODINGS,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    decode_reply,
    encode_batch,
    encode_parameters,
)

ID = StepId(seed=1, server_round=1, plan=0, step=1, client_key=5, start=0, batch_size=4)
DATA = TensorDataset(
    torch.rand(10, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(10)
)
GRADIENT = torch.linspace(-1, 1, 256).reshape(4, 4, 4, 4)
LOSSY = [name for name in ENCODINGS if name != "raw"]


def segment() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


PARAMETERS = dict(segment().named_parameters())


def request(encodings: Encodings, phase: Phase, step: StepId = ID) -> StepRequest:
    weights = encode_parameters(ModuleIndex(segment()).tensors, encodings.weights, PARAMETERS)
    if phase is not Phase.BACKWARD:
        return StepRequest(phase=phase, id=step, weights=weights, encodings=encodings)
    encoded = encode_batch("gradient", GRADIENT, encodings.gradients, lambda: 1)
    return StepRequest(
        phase=phase,
        id=step,
        weights=weights,
        gradient=encoded.values,
        extras=encoded.extras,
        encodings=encodings,
    )


def all_of(encoding: str) -> Encodings:
    return Encodings(activations=encoding, gradients=encoding, weights=encoding)


def step(encodings: Encodings) -> tuple[StepReply, StepReply]:
    client = SplitClient(segment(), DATA)
    forward = client.handle(request(encodings, Phase.FORWARD))
    return forward, client.handle(request(encodings, Phase.BACKWARD))


def assert_same(left: StepReply, right: StepReply) -> None:
    """Compare bit for bit; only the time may differ."""
    for name in ("extras", "gradients", "moments"):
        mine, theirs = getattr(left, name), getattr(right, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    if left.activations is not None and right.activations is not None:
        assert torch.equal(left.activations, right.activations)


@pytest.mark.parametrize("encoding", LOSSY)
def test_an_encoded_step_is_near_the_raw_one(encoding: str) -> None:
    raw_forward, raw_backward = step(Encodings())
    forward, backward = (
        decode_reply(reply, all_of(encoding), PARAMETERS) for reply in step(all_of(encoding))
    )
    assert forward.activations is not None
    torch.testing.assert_close(forward.activations, raw_forward.activations, atol=0.1, rtol=0.05)
    for name, gradient in raw_backward.gradients.items():
        difference = backward.gradients[name] - gradient
        # The gradient of a bias in front of BatchNorm is zero but for rounding.
        assert float(difference.norm()) <= 0.1 * float(gradient.norm()) + 0.05


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_reply_is_encoded_as_the_request_says(encoding: str) -> None:
    forward, _ = step(Encodings(activations=encoding))
    assert forward.activations is not None
    raw, _ = step(Encodings())
    assert raw.activations is not None
    expected = encode_batch("activations", raw.activations, encoding, None)
    assert torch.equal(forward.activations, expected.values)
    assert forward.extras.keys() == expected.extras.keys()
    assert forward.activation_dtype == torch.float32
    assert_same(replace(forward, activations=None, extras={}), replace(raw, activations=None))
    _, backward = step(Encodings(gradients=encoding))
    assert backward.gradients.keys() == encode_parameters(PARAMETERS, encoding, PARAMETERS).keys()


def test_raw_activations_are_not_copied() -> None:
    seen: list[Tensor] = []
    watched = segment()
    watched.register_forward_hook(lambda module, args, output: seen.append(output))
    reply = SplitClient(watched, DATA).handle(request(Encodings(), Phase.FORWARD))
    assert reply.activations is not None
    assert reply.activations.data_ptr() == seen[0].data_ptr()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_repeated_or_recomputed_reply_has_the_same_bits(encoding: str) -> None:
    encodings = all_of(encoding)
    forward, backward = step(encodings)
    client = SplitClient(segment(), DATA)
    assert_same(client.handle(request(encodings, Phase.FORWARD)), forward)
    assert_same(client.handle(request(encodings, Phase.FORWARD)), forward)
    assert_same(client.handle(request(encodings, Phase.BACKWARD)), backward)
    assert_same(client.handle(request(encodings, Phase.BACKWARD)), backward)
    elsewhere = SplitClient(segment(), DATA)
    assert_same(elsewhere.handle(request(encodings, Phase.BACKWARD)), backward)


def test_gradients_are_rounded_anew_in_every_step() -> None:
    class Constant(nn.Module):
        """Gives the same gradient whatever the examples are."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.expand(len(x), 4, 4, 4)

    encodings = Encodings(gradients="int8")
    client = SplitClient(Constant(), DATA)

    def numbers(position: StepId) -> list[int]:
        asked = request(encodings, Phase.BACKWARD, position)
        reply = client.handle(replace(asked, weights={"weight": torch.zeros(4, 4, 4)}))
        values: list[int] = reply.gradients["weight"].reshape(-1).tolist()
        return values

    first = numbers(ID)
    for other in ({"step": 2}, {"server_round": 2}, {"plan": 1}, {"client_key": 6}, {"seed": 2}):
        assert numbers(ID._replace(**other)) != first
    client.forget()
    assert numbers(ID) == first


def test_the_process_draws_as_before() -> None:
    state = torch.get_rng_state()
    step(all_of("int8"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("encoding", LOSSY)
def test_double_precision_stays_double(encoding: str) -> None:
    double = segment().double()
    data = TensorDataset(DATA.tensors[0].double(), DATA.tensors[1])
    encodings = all_of(encoding)
    weights = encode_parameters(ModuleIndex(double).tensors, encoding, PARAMETERS)
    client = SplitClient(double, data)
    forward = client.handle(replace(request(encodings, Phase.FORWARD), weights=weights))
    assert forward.activation_dtype == torch.float64
    decoded = decode_reply(forward, encodings, {})
    assert decoded.activations is not None
    assert decoded.activations.dtype == torch.float64
    assert forward.activations is not None
    assert forward.activations.element_size() == ENCODINGS[encoding].itemsize


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gradient": GRADIENT}, "'gradient' encoded as 'int8' has torch.float32 values"),
        ({"extras": {}}, r"'gradient' encoded as 'int8' without \['gradient\|scale'"),
        (
            {"extras": {"gradient|scale": torch.ones(3), "gradient|zero": torch.ones(3)}},
            r"a scale of torch.float32 \(3,\) for values of shape \(4, 4, 4, 4\)",
        ),
        (
            {
                "extras": {
                    "gradient|scale": torch.full((4,), torch.nan),
                    "gradient|zero": PARAMETERS["1.bias"].detach(),
                }
            },
            "a scale that is NaN or infinite",
        ),
        ({"weights": ModuleIndex(segment()).tensors}, "'0.weight' encoded as 'int8' without"),
    ],
)
def test_what_is_not_encoded_as_it_says_is_refused(change: dict[str, object], text: str) -> None:
    asked = replace(request(all_of("int8"), Phase.BACKWARD), **change)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=f"client 5, round 1, step 1: .*{text}"):
        SplitClient(segment(), DATA).handle(asked)


def test_weights_of_another_model_are_refused() -> None:
    asked = request(all_of("bf16"), Phase.FORWARD)
    weights = {**asked.weights, "0.weight": asked.weights["0.weight"][:2]}
    with pytest.raises(ProtocolError, match=r"step 1: '0.weight' travelled with shape \(2, 3, 3"):
        SplitClient(segment(), DATA).handle(replace(asked, weights=weights))
