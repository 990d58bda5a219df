"""Requests that lie, in their values and in their tensors, as a device answers them."""

import copy
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import SplitClient
from flower_psl.split import ModuleIndex
from flower_psl.wire import (
    Encodings,
    Phase,
    StepId,
    StepRequest,
    encode_batch,
    encode_parameters,
    parts,
)

if TYPE_CHECKING:
    from tests.fuzz.conftest import Draws, Fuzz, Mutant

SEGMENT = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
DATA = TensorDataset(torch.rand(6, 3), torch.arange(6) % 3)
ID = StepId(seed=3, server_round=2, plan=0, step=40, client_key=9, start=6, batch_size=4)


def requests() -> list[StepRequest]:
    asked = []
    for name in ("raw", "int8"):
        encodings = Encodings(activations=name, gradients=name, weights=name)
        weights = encode_parameters(
            ModuleIndex(SEGMENT).tensors, name, dict(SEGMENT.named_parameters())
        )
        gradient = encode_batch("gradient", torch.rand(4, 2), name, lambda: 0)
        sent = partial(StepRequest, weights=weights, encodings=encodings)
        back = partial(
            StepRequest,
            gradient=gradient.values,
            extras=gradient.extras,
            encodings=encodings,
        )
        asked += [
            sent(phase=Phase.FORWARD, id=ID),
            back(phase=Phase.BACKWARD, id=ID),
            back(phase=Phase.BACKWARD, id=ID, weights=weights),
            sent(phase=Phase.EVALUATE, id=ID._replace(start=1)),
            sent(phase=Phase.TRAIN, id=ID),
            back(phase=Phase.TRAIN, id=ID._replace(step=41), previous=ID),
            back(phase=Phase.SETTLE, id=ID),
            back(phase=Phase.COLLECT, id=ID),
        ]
    return asked


REQUESTS = requests()
ENCODING = r"^the encoding of {0} is .*; it is one of"
# What is said of each value. A step that is one, but another, is a request that may not come here
# and now, and is refused for what it then asks for.
SAID = {
    "phase": r"^phase .* is unknown; it is one of",
    "id": r"^id .* is not the 7 integers of a step|a cut gradient of shape .* for \d+ examples|"
    r"a forward pass that is not known here|the device waits for that of|"
    r"examples \d+ to \d+ were asked for, of 6 in",
    "previous": r"^previous .* is not the 7 integers of a step|the device waits for that of|"
    r"a train request with a gradient; a gradient belongs to .* previous",
    **{
        f"{name}-encoding": ENCODING.format(name)
        for name in ("activations", "gradients", "weights")
    },
}


def new_client() -> SplitClient:
    return SplitClient(
        copy.deepcopy(SEGMENT),
        DATA,
        DATA,
        optimizer_fn=lambda params: torch.optim.SGD(params, lr=0.1),
    )


def ready_for(request: StepRequest) -> SplitClient:
    """Return a device that has done what comes before a request."""
    client = new_client()
    before = Phase.FORWARD if request.phase is Phase.BACKWARD else Phase.TRAIN
    if request.gradient is not None:
        client.handle(StepRequest(phase=before, id=ID, weights=ModuleIndex(SEGMENT).tensors))
    return client


def answer(
    client: SplitClient,
    values: dict[str, Any],
    weights: dict[str, Tensor],
    tensors: dict[str, Tensor],
) -> None:
    """Answer a request as a device does; the answer is to what was asked."""
    request = parts.request_of(values, weights, tensors)
    reply = client.handle(request)
    assert (reply.phase, reply.id) == (request.phase, request.id)
    if reply.activations is not None:
        assert len(reply.activations) == request.id.batch_size <= len(DATA)


def test_the_truth_is_answered() -> None:
    for request in REQUESTS:
        config = parts.request_config(request)
        answer(ready_for(request), config, {**request.weights}, parts.request_tensors(request))


def test_requests_whose_values_lie(fuzzing: "type[Fuzz]") -> None:
    def make(draws: "Draws") -> "Mutant":
        request = REQUESTS[int(draws.integers(len(REQUESTS)))]
        values, field = fuzzing.mutated(draws, parts.request_config(request))
        client, tensors = ready_for(request), parts.request_tensors(request)
        said = re.compile(SAID[field], re.DOTALL)
        return fuzzing.mutant(lambda: answer(client, values, {**request.weights}, tensors), said)

    with fuzzing.within(64_000_000):
        assert 600 < fuzzing.run(1_200, make) < 1_200


def test_requests_whose_tensors_lie(fuzzing: "type[Fuzz]") -> None:
    def make(draws: "Draws") -> "Mutant":
        request = REQUESTS[int(draws.integers(len(REQUESTS)))]
        both = {"weights": {**request.weights}, "tensors": parts.request_tensors(request)}
        group = "weights" if request.weights else "tensors"
        lying, names = fuzzing.lying_tensors(draws, both[group])
        both[group] = lying
        client, config = ready_for(request), parts.request_config(request)
        return fuzzing.mutant(
            lambda: answer(client, config, both["weights"], both["tensors"]), names
        )

    with fuzzing.within(64_000_000):
        assert 600 < fuzzing.run(1_200, make) < 1_200
