"""Whole runs whose tensors are encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from flower_psl import (
    ConfigError,
    Encodings,
    FailurePolicy,
    ParallelSplitLearning,
    ProtocolError,
    SplitClient,
    run_in_process,
)
from flower_psl.server import make_step
from flower_psl.server.global_step import GlobalStep
from flower_psl.server.step_outcome import StepOutcome
from flower_psl.telemetry import StepRecord
from flower_psl.transport import Device
from flower_psl.wire import (
    ENCODINGS,
    DescribeReply,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    records,
)

Make = Callable[..., ParallelSplitLearning]
LOSSY = [name for name in ENCODINGS if name != "raw"]


@dataclass
class Behind:
    """A client behind a wire; its requests are kept, and its replies may be changed."""

    client: Device
    change: Callable[[StepReply], StepReply] = field(default=lambda reply: reply)
    carried: bool = False
    requests: list[StepRequest] = field(default_factory=list)

    def describe(self) -> DescribeReply:
        return self.client.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        self.requests.append(request)
        if self.carried:
            weights = records.encode_tensors(request.weights)
            request = records.decode_request(records.encode_request(request, weights))
        reply = self.change(self.client.handle(request))
        return records.decode_reply(records.encode_reply(reply)) if self.carried else reply


def all_of(encoding: str) -> Encodings:
    return Encodings(activations=encoding, gradients=encoding, weights=encoding)


def train(
    strategy: ParallelSplitLearning, clients: Mapping[int, Any], arrays: ArrayRecord
) -> dict[str, Tensor]:
    result = run_in_process(strategy, dict(clients), arrays, num_rounds=2)
    assert result.evaluate_metrics_clientapp
    return dict(result.arrays.to_torch_state_dict())


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_run_over_records_has_the_bits_of_one_in_process(
    encoding: str, make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    strategy = make_strategy(encodings=all_of(encoding))
    direct = train(strategy, clients, arrays)
    carried = {key: Behind(client, carried=True) for key, client in clients.items()}
    assert_same(train(strategy, carried, arrays), direct)
    if encoding != "raw":
        raw = train(make_strategy(), clients, arrays)
        assert any(not torch.equal(direct[name], raw[name]) for name in raw)


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_run_ends_near_the_raw_one(
    encoding: str, make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    raw = train(make_strategy(), clients, arrays)
    start = arrays.to_torch_state_dict()
    lossy = train(make_strategy(encodings=all_of(encoding)), clients, arrays)
    moved = sum(float((raw[name] - start[name]).square().sum()) for name in raw) ** 0.5
    apart = sum(float((raw[name] - lossy[name]).square().sum()) for name in raw) ** 0.5
    assert apart < 0.1 * moved


def test_weights_are_encoded_once_a_step(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    devices = {key: Behind(client) for key, client in clients.items()}
    train(make_strategy(encodings=all_of("int8")), devices, arrays)
    steps: dict[tuple[int, ...], set[int]] = {}
    for device in devices.values():
        for request in device.requests:
            if request.phase is not Phase.BACKWARD:
                where = (request.id.server_round, request.id.step, request.phase is Phase.FORWARD)
                steps.setdefault(where, set()).add(id(request.weights))
                assert request.weights["0.weight"].dtype == torch.uint8
    assert steps
    assert all(len(tables) == 1 for tables in steps.values())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[StepRecord]:
    """Return a list that gets the record of every step that a test takes."""
    kept: list[StepRecord] = []

    class Kept(GlobalStep):
        def run(self, *args: Any, **kwargs: Any) -> StepOutcome:
            outcome = super().run(*args, **kwargs)
            assert outcome.record is not None
            kept.append(outcome.record)
            return outcome

    monkeypatch.setattr(make_step, "GlobalStep", Kept)
    return kept


@pytest.mark.parametrize(("encoding", "size"), [("bf16", 2), ("fp16", 2), ("int8", 1)])
def test_the_record_counts_the_bytes_that_travel(
    encoding: str,
    size: int,
    steps: list[StepRecord],
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
) -> None:
    train(make_strategy(encodings=all_of(encoding)), clients, arrays)
    quantized = encoding == "int8"
    weights = size * (6 * 8 + 8) + quantized * 8 * (8 + 1)  # 8 rows and a bias
    scales = quantized * 8 * 8
    for record in steps:
        count, examples = len(record.clients), record.effective_batch_size
        crossing = size * 8 * examples + count * scales
        assert record.bytes_down == count * weights + crossing
        assert record.bytes_up == crossing + 8 * examples + count * weights
        assert record.seconds["encode"] > 0
        assert record.seconds["decode"] > 0


@pytest.mark.parametrize(
    ("encoding", "phase", "change", "text"),
    [
        (
            "bf16",
            Phase.FORWARD,
            lambda reply: replace(reply, activations=reply.activations.float()),
            "'activations' encoded as 'bf16' has torch.float32 values",
        ),
        (
            "bf16",
            Phase.FORWARD,
            lambda reply: replace(reply, activations=reply.activations * torch.nan),
            "the activations have NaN",
        ),
        (
            "fp16",
            Phase.FORWARD,
            lambda reply: replace(reply, activation_dtype=None),
            "without the dtype of the original",
        ),
        (
            "int8",
            Phase.FORWARD,
            lambda reply: replace(reply, extras={}),
            r"without \['activations\|scale', 'activations\|zero'\]",
        ),
        (
            "int8",
            Phase.EVALUATE,
            lambda reply: replace(reply, extras={}),
            r"without \['activations\|scale', 'activations\|zero'\]",
        ),
        (
            "int8",
            Phase.BACKWARD,
            lambda reply: replace(
                reply, gradients=reply.gradients | {"0.bias|scale": torch.full((1,), torch.inf)}
            ),
            "'0.bias' .* a scale that is NaN or infinite",
        ),
        (
            "fp16",
            Phase.BACKWARD,
            lambda reply: replace(
                reply, gradients=reply.gradients | {"x": torch.zeros(1, dtype=torch.float16)}
            ),
            r"the tensors \['x'\] are no part of what travels as 'fp16'",
        ),
    ],
)
def test_a_reply_that_breaks_its_encoding_names_its_client(
    encoding: str,
    phase: Phase,
    change: Callable[[Any], StepReply],
    text: str,
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
) -> None:
    def lie(reply: StepReply) -> StepReply:
        return change(reply) if reply.phase is phase else reply

    lying = {**clients, 9: Behind(clients[9], lie)}
    with pytest.raises(ProtocolError, match=rf"client 9, round \d, step \d: .*{text}"):
        strict = FailurePolicy(min_clients=3)
        train(make_strategy(encodings=all_of(encoding), failures=strict), lying, arrays)


def test_what_is_no_encodings_is_refused(make_strategy: Make) -> None:
    with pytest.raises(ConfigError, match=r"encodings is 'bf16'; it must be an Encodings, such"):
        make_strategy(encodings="bf16")
