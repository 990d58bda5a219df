"""Replies that lie, in their values and in their tensors, as the server reads them."""

import copy
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import ProtocolError, SplitClient
from flower_psl.split import (
    ModuleIndex,
    check_moments,
    trained_tensors,
    update_running_statistics,
)
from flower_psl.wire import (
    Encodings,
    Phase,
    StepId,
    StepRequest,
    check_batch,
    check_belongs,
    check_gradients,
    check_weights,
    decode_reply,
    encode_batch,
    encode_parameters,
    parts,
)

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

SEGMENT = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2)))
PARAMETERS = dict(SEGMENT.named_parameters())
DATA = TensorDataset(torch.rand(6, 1, 5, 5), torch.arange(6) % 3)
ID = StepId(seed=3, server_round=2, plan=0, step=40, client_key=9, start=6, batch_size=4)


class Said(NamedTuple):
    """A request and the true reply to it, as they travel."""

    request: StepRequest
    values: dict[str, Any]
    tensors: dict[str, Tensor]


def said() -> dict[str, Said]:
    """Return a request and its reply of each phase, raw and encoded."""
    conversations = {}
    for name in ("raw", "int8", "fp16"):
        encodings = Encodings(activations=name, gradients=name, weights=name)
        client = SplitClient(
            SEGMENT, DATA, DATA, optimizer_fn=lambda params: torch.optim.SGD(params, lr=0.1)
        )
        weights = encode_parameters(ModuleIndex(SEGMENT).tensors, name, PARAMETERS)
        gradient = encode_batch("gradient", torch.rand(4, 2, 3, 3), name, lambda: 0)
        sent = partial(StepRequest, weights=weights, encodings=encodings)
        back = partial(
            StepRequest,
            gradient=gradient.values,
            extras=gradient.extras,
            encodings=encodings,
        )
        asked = [
            sent(phase=Phase.FORWARD, id=ID),
            back(phase=Phase.BACKWARD, id=ID),
            sent(phase=Phase.EVALUATE, id=ID._replace(start=1)),
            sent(phase=Phase.TRAIN, id=ID),
            back(phase=Phase.COLLECT, id=ID),
        ]
        for request in asked:
            reply = client.handle(request)
            conversations[f"{request.phase}-{name}"] = Said(
                request, {**parts.reply_config(reply)}, parts.reply_tensors(reply)
            )
    return conversations


SAID = said()


def read(request: StepRequest, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Read a reply as the server does; what it accepts must be as good as the truth."""
    reply = parts.reply_of(values, tensors)
    check_belongs(reply, request)
    decoded = decode_reply(reply, request.encodings, PARAMETERS)
    if request.phase is Phase.BACKWARD:
        for name, gradient in check_gradients(decoded, PARAMETERS).items():
            assert gradient.shape == PARAMETERS[name].shape
            assert bool(gradient.isfinite().all())
    elif request.phase is Phase.COLLECT:
        expected = trained_tensors(ModuleIndex(SEGMENT))
        weights = check_weights(decoded, expected)
        assert {name: (t.shape, t.dtype) for name, t in weights.items()} == {
            name: (t.shape, t.dtype) for name, t in expected.items()
        }
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    else:
        activations, labels = check_batch(decoded)
        check_moments(SEGMENT, decoded.moments, str(reply.id))
        assert len(activations) == len(labels) == ID.batch_size
        assert bool(activations.isfinite().all() & labels.isfinite().all())
        segment = copy.deepcopy(SEGMENT)
        update_running_statistics(segment, [decoded.moments, decoded.moments])
        assert all(bool(tensor.isfinite().all()) for tensor in segment.buffers())
    assert 0 <= reply.busy_s < 1e8


def test_the_truth_is_read() -> None:
    for each in SAID.values():
        read(*each)


def chosen(draws: "Draws") -> Said:
    return list(SAID.values())[int(draws.integers(len(SAID)))]


def test_replies_whose_values_lie(fuzzing: "type[Fuzz]") -> None:
    def make(draws: "Draws") -> "Mutant":
        request, values, tensors = chosen(draws)
        lying, field = fuzzing.mutated(draws, values)
        names = fuzzing.spellings(field) | {"the dtype of the original"}
        return fuzzing.mutant(lambda: read(request, lying, tensors), names)

    with fuzzing.within(64_000_000):
        assert 8_000 < fuzzing.run(10_000, make) < 10_000


def test_replies_whose_tensors_lie(fuzzing: "type[Fuzz]") -> None:
    talks = [each for each in SAID.values() if each.tensors]

    def make(draws: "Draws") -> "Mutant":
        request, values, tensors = talks[int(draws.integers(len(talks)))]
        lying, names = fuzzing.lying_tensors(draws, tensors)
        return fuzzing.mutant(lambda: read(request, values, lying), names)

    with fuzzing.within(64_000_000):
        assert 5_000 < fuzzing.run(12_000, make) < 12_000


@pytest.mark.parametrize("name", list(SAID))
def test_a_reply_to_another_request_is_refused(name: str) -> None:
    for other, (request, _, _) in SAID.items():
        if request.phase is not SAID[name].request.phase:
            with pytest.raises(ProtocolError, match="echo the phase and id"):
                read(SAID[other].request, SAID[name].values, SAID[name].tensors)
