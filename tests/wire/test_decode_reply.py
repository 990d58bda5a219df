import pytest
import torch
from torch import Tensor, nn

from flower_psl import Encodings, ProtocolError
from flower_psl.wire import (
    ENCODINGS,
    Phase,
    StepId,
    StepReply,
    decode_reply,
    encode_batch,
    encode_parameters,
)

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=3, start=16, batch_size=4)
LOSSY = [name for name in ENCODINGS if name != "raw"]
PARAMETERS: dict[str, Tensor] = {
    "w": nn.Parameter(torch.rand(8, 3)),
    "b": nn.Parameter(torch.rand(8)),
}


def forward_reply(encoding: str, activations: Tensor) -> StepReply:
    encoded = encode_batch("activations", activations, encoding, None)
    return StepReply(
        phase=Phase.FORWARD,
        id=ID,
        activations=encoded.values,
        activation_dtype=activations.dtype,
        extras=encoded.extras,
        labels=torch.arange(4),
        moments={"bn.mean": torch.rand(1, 3).double()},
        compute_s=0.5,
    )


def backward_reply(encoding: str, gradients: dict[str, Tensor]) -> StepReply:
    travelling = encode_parameters(gradients, encoding, gradients, lambda: 1)
    return StepReply(phase=Phase.BACKWARD, id=ID, gradients=travelling, unused=("b",))


def test_raw_is_the_reply_itself() -> None:
    reply = forward_reply("raw", torch.rand(4, 3))
    assert decode_reply(reply, Encodings(), PARAMETERS) is reply


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_what_they_were(encoding: str, dtype: torch.dtype) -> None:
    activations = torch.rand(4, 3, 5, dtype=dtype)
    reply = forward_reply(encoding, activations)
    decoded = decode_reply(reply, Encodings(activations=encoding), PARAMETERS)
    assert decoded.activations is not None
    assert decoded.activations.dtype == dtype
    torch.testing.assert_close(decoded.activations, activations, atol=1 / 255, rtol=0)
    assert decoded.labels is reply.labels
    assert (decoded.moments, decoded.compute_s) == (reply.moments, reply.compute_s)


@pytest.mark.parametrize("encoding", LOSSY)
def test_gradients_are_what_they_were(encoding: str) -> None:
    gradients = {"w": torch.rand(8, 3)}
    decoded = decode_reply(
        backward_reply(encoding, gradients), Encodings(gradients=encoding), PARAMETERS
    )
    assert list(decoded.gradients) == ["w"]
    torch.testing.assert_close(decoded.gradients["w"], gradients["w"], atol=1 / 255, rtol=0)
    assert decoded.unused == ("b",)


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_client_that_did_not_encode_is_named(encoding: str) -> None:
    where = "client 3, round 2, step 40: "
    raw = forward_reply("raw", torch.rand(4, 3))
    with pytest.raises(ProtocolError, match=f"{where}'activations' encoded as '{encoding}'"):
        decode_reply(raw, Encodings(activations=encoding), PARAMETERS)
    with pytest.raises(ProtocolError, match=f"{where}'w' encoded as '{encoding}'"):
        decode_reply(
            backward_reply("raw", {"w": torch.rand(8, 3)}),
            Encodings(gradients=encoding),
            PARAMETERS,
        )


def test_a_client_that_encoded_unasked_is_named() -> None:
    reply = forward_reply("int8", torch.rand(4, 3))
    with pytest.raises(
        ProtocolError,
        match=r"client 3, .* \['activations\|scale', 'activations\|zero'\] are no part .* 'raw'",
    ):
        decode_reply(reply, Encodings(), PARAMETERS)
