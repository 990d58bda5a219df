"""A device that saves what it trains at a server's checkpoint, and goes on from it."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import ClientError, SplitClient, SplitClientApp
from flower_psl.errors import CheckpointError
from flower_psl.split import ModuleIndex
from flower_psl.wire import Phase, StepId, StepReply, StepRequest, records

DATA = TensorDataset(torch.rand(12, 3), torch.arange(12))
RUN = "3f9a"


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.1)


def segment(width: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, width)
        )


def device(state_dir: Path | None, width: int = 2) -> SplitClient:
    return SplitClient(segment(width).to("meta"), DATA, optimizer_fn=adam, state_dir=state_dir)


def step(number: int, key: int = 5) -> StepId:
    return StepId(
        seed=1, server_round=1, plan=0, step=number, client_key=key, start=number, batch_size=4
    )


def train(client: SplitClient, number: int) -> StepReply:
    if number == 1:
        first = StepRequest(phase=Phase.TRAIN, id=step(1), weights=ModuleIndex(segment()).tensors)
        return client.handle(first)
    gradient = torch.linspace(-1, number, 8).reshape(4, 2)
    previous = step(number - 1)
    return client.handle(
        StepRequest(phase=Phase.TRAIN, id=step(number), previous=previous, gradient=gradient)
    )


def version(number: int, key: int = 5) -> StepId:
    return step(number, key)._replace(start=0, batch_size=0)


def save(client: SplitClient, number: int, oldest: int | None = None, run: str = RUN) -> StepReply:
    previous = None if oldest is None else version(oldest)
    return client.handle(
        StepRequest(phase=Phase.SAVE, id=version(number), previous=previous, run=run)
    )


def restore(client: SplitClient, number: int, run: str = RUN, key: int = 5) -> StepReply:
    return client.handle(StepRequest(phase=Phase.RESTORE, id=version(number, key), run=run))


def files(state_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(state_dir)) for path in state_dir.rglob("*.safetensors"))


def test_a_new_process_goes_on_from_a_version_even_if_the_device_was_ahead(tmp_path: Path) -> None:
    client = device(tmp_path)
    assert client.describe().keeps_state
    train(client, 1)
    train(client, 2)
    reply = save(client, 2)
    assert (reply.phase, reply.id) == (Phase.SAVE, version(2))
    ahead = [train(client, number) for number in (3, 4)]
    save(client, 4, oldest=2)
    again = device(tmp_path)
    assert restore(again, 2).phase is Phase.RESTORE
    for number, before in zip((3, 4), ahead, strict=True):
        after = train(again, number)
        assert after.activations is not None and before.activations is not None
        assert torch.equal(after.activations, before.activations)


def test_versions_are_kept_from_the_oldest_that_the_server_may_ask_for(tmp_path: Path) -> None:
    client = device(tmp_path)
    for number in range(1, 5):
        train(client, number)
        save(client, number, oldest=max(1, number - 1))
    assert files(tmp_path) == [
        f"client-5/{RUN}/round-1-step-3.safetensors",
        f"client-5/{RUN}/round-1-step-4.safetensors",
    ]


def test_runs_and_clients_have_folders_of_their_own(tmp_path: Path) -> None:
    client = device(tmp_path)
    train(client, 1)
    save(client, 1)
    save(client, 1, run="other")
    assert len(files(tmp_path)) == 2
    with pytest.raises(CheckpointError, match=r"client-6/.*No such file.*it has: none\)"):
        restore(device(tmp_path), 1, key=6)


def test_a_version_that_is_missing_is_refused_beside_those_there(tmp_path: Path) -> None:
    client = device(tmp_path)
    train(client, 1)
    save(client, 1)
    with pytest.raises(CheckpointError, match=r"it has: round 1, step 1\)\. Bring the folder"):
        restore(device(tmp_path), 2)


def test_a_damaged_version_is_refused(tmp_path: Path) -> None:
    client = device(tmp_path)
    train(client, 1)
    save(client, 1)
    path = tmp_path / files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="the state of the device: its checksum is not"):
        restore(device(tmp_path), 1)


def test_the_state_of_another_segment_or_optimizer_is_refused(tmp_path: Path) -> None:
    client = device(tmp_path)
    train(client, 1)
    train(client, 2)
    save(client, 2)
    rule = r"saved tensor 3.weight is torch.float32 \(2, 4\), the model's torch.float32 \(3, 4\)"
    with pytest.raises(CheckpointError, match=rf"{rule}; both must agree. Build the same"):
        restore(device(tmp_path, width=3), 2)
    groups = SplitClient(
        segment(),
        DATA,
        optimizer_fn=lambda p: SGD([{"params": [q]} for q in p]),
        state_dir=tmp_path,
    )
    with pytest.raises(
        CheckpointError, match=r"the saved optimizer/param_groups is .*Build the same"
    ):
        restore(groups, 2)


def test_a_device_without_a_folder_says_so() -> None:
    client = device(None)
    assert not client.describe().keeps_state
    train(client, 1)
    with pytest.raises(ClientError, match=r"step 1: asked to save .* names no folder.*state_dir="):
        save(client, 1)


def test_a_device_with_nothing_to_save_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"step 1: asked to save .* has restarted .*Resume"):
        save(device(tmp_path), 1)
    assert files(tmp_path) == []


def test_over_messages_the_state_is_that_of_the_context(tmp_path: Path, flower_run: None) -> None:
    app = SplitClientApp(lambda context: device(tmp_path))

    def ask(context: Context, request: StepRequest) -> StepReply:
        content = records.encode_request(request, records.encode_tensors(request.weights))
        reply = app(Message(content, 10, "train.psl_step"), context)
        assert not reply.has_error(), reply.error
        return records.decode_reply(reply.content)

    here, there = (Context(run, 10, {"partition-id": 5}, RecordDict(), {}) for run in (1, 2))
    weights = ModuleIndex(segment()).tensors
    ask(here, StepRequest(phase=Phase.TRAIN, id=step(1), weights=weights))
    ask(here, StepRequest(phase=Phase.SAVE, id=version(1), run=RUN))
    ask(there, StepRequest(phase=Phase.RESTORE, id=version(1), run=RUN))
    gradient = torch.ones(4, 2)
    goes_on = StepRequest(phase=Phase.TRAIN, id=step(2), previous=step(1), gradient=gradient)
    ours, theirs = ask(here, goes_on).activations, ask(there, goes_on).activations
    assert ours is not None and theirs is not None
    assert torch.equal(ours, theirs)
