"""Runs that stop by themselves, for whatever reason: they are saved, and can be resumed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Result
from torch import Tensor
from torch.nn.functional import cross_entropy

from flower_psl import (
    BatchSchedule,
    Checkpoints,
    ClientError,
    ConfigError,
    FailurePolicy,
    GlobalSampler,
    PslError,
    Sampler,
    WaitError,
)
from flower_psl.storage import Version
from flower_psl.transport import Device, InProcessTransport
from flower_psl.wire import Phase, StepReply, StepRequest
from tests.server.checkpoints.resumable import (
    NUM_ROUNDS,
    SETTINGS,
    Fuse,
    MortalClient,
    build_model,
    left_behind,
    make_clients,
    make_strategy,
)

if TYPE_CHECKING:
    from tests.conftest import FakeTime


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, and do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name in ("draw_rounds", "draw_schedule"):
        monkeypatch.setattr(f"flower_psl.telemetry.run_recorder.{name}", lambda *args: [])


def run(
    name: str,
    folder: Path,
    change: Callable[[MortalClient], Device] = lambda client: client,
    *,
    timeout: float = 1e6,
    state_dir: bool = True,
    **changes: Any,
) -> Result:
    """Run with checkpoints at the end of rounds, if nothing stops it."""
    setting = replace(SETTINGS[name], fraction_evaluate=0.0)
    settings: dict[str, Any] = {"checkpoints": Checkpoints(folder=folder / "checkpoints")}
    clients = make_clients(folder / "devices" if state_dir else None, Fuse())
    return make_strategy(setting, folder, **(settings | changes)).run_over(
        InProcessTransport({key: change(client) for key, client in clients.items()}),
        ArrayRecord(build_model().state_dict()),
        num_rounds=NUM_ROUNDS,
        timeout=timeout,
        evaluate_fn=None,
        min_nodes=3,
    )


def last(folder: Path) -> Version:
    return Checkpoints(folder=folder / "checkpoints").versions.versions()[-1]


def learned(result: Result, folder: Path) -> dict[str, Any]:
    """Return what does not hang on which step the bytes of a round's end are counted with."""
    found = left_behind(result, folder / "out")
    steps = [(s["round"], s["step"], s["loss"], s["clients"]) for s in found["steps"]]
    return {"weights": found["weights"], "train": found["train"], "steps": steps}


class Ticking(MortalClient):
    """A client whose answers to training take a second each, by a clock."""

    clock: "FakeTime"

    def handle(self, request: StepRequest) -> StepReply:
        if request.phase not in (Phase.SAVE, Phase.RESTORE):
            self.clock.sleep(1.0)
        return self.client.handle(request)


@pytest.mark.parametrize("name", ["step", "round, copies", "none"])
def test_a_round_that_runs_out_of_time_anywhere_ends_with_the_same_bits(
    name: str, tmp_path: Path, fake_time: "FakeTime", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_psl.server.training_run.time", fake_time)
    monkeypatch.setattr(Ticking, "clock", fake_time, raising=False)
    # "none" needs a folder of its own; "round" too, where it stops within a round.
    expected = learned(run(name, tmp_path / "whole"), tmp_path / "whole")
    places = set()
    for seconds in range(1, 30, 2):
        folder = tmp_path / str(seconds)
        try:
            run(name, folder, lambda c: Ticking(c.client, c.fuse), timeout=seconds)
        except WaitError as error:
            assert "the round took longer than" in str(error)
            assert f"The run is saved up to {last(folder)}" in str(error)
            places.add(last(folder))
            assert learned(run(name, folder), folder) == expected, seconds
    assert len(places) >= 4
    # All steps of the round are taken then, and its end is not.
    assert (Version(1, 4) in places) == (name != "step")


class Lost(MortalClient):
    """A client that trains, and does not give back what it trained."""

    def handle(self, request: StepRequest) -> StepReply:
        if request.phase is Phase.COLLECT:
            raise OSError("the disk is full")
        return self.client.handle(request)


def test_a_strategy_that_wants_more_than_are_left_stops_a_run_that_is_saved(
    tmp_path: Path, flower_run: None
) -> None:
    wants = {nodes: FedAvg(min_train_nodes=nodes, min_available_nodes=nodes) for nodes in (2, 3)}

    def lose_one(client: MortalClient) -> Device:
        lost = client.describe().num_examples == 7
        return Lost(client.client, client.fuse) if lost else client

    settings: dict[str, Any] = {"min_available_nodes": 3}
    for _ in range(2):  # what the lost one trained is gone, so it does not help to start again
        with pytest.raises(ConfigError, match=r"FedAvg: it wants 3 nodes, and 2 trained") as info:
            run("round", tmp_path, lose_one, client_strategy=wants[3], **settings)
        assert last(tmp_path) == (1, 4)
        assert f"The run is saved up to {last(tmp_path)}" in str(info.value)
    result = run("round", tmp_path, client_strategy=wants[2], **settings)
    steps = left_behind(result, tmp_path / "out")["steps"]
    assert [(s["round"], s["step"]) for s in steps] == [
        (r, s) for r in (1, 2) for s in (1, 2, 3, 4)
    ]
    assert result.train_metrics_clientapp[1]["num-examples"] == 21


def test_a_loss_that_is_not_finite_stops_a_run_that_is_saved(tmp_path: Path) -> None:
    def loss_of(last_call: int) -> Callable[[Tensor, Tensor], Tensor]:
        calls = iter(range(10**6))

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            broken = next(calls) >= last_call
            return cross_entropy(outputs, labels) * (torch.nan if broken else 1.0)

        return loss

    whole = learned(run("step", tmp_path / "whole", loss_fn=loss_of(10**6)), tmp_path / "whole")
    with pytest.raises(PslError, match=r"the loss is nan; .*saved up to round 1, step 2,"):
        run("step", tmp_path, loss_fn=loss_of(2))
    assert last(tmp_path) == (1, 2)
    assert learned(run("step", tmp_path, loss_fn=loss_of(10**6)), tmp_path) == whole


class Moody(Sampler):
    """A sampler that has no schedule for the second round."""

    def __init__(self, mood: str) -> None:
        self._mood = mood

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        if (self._mood, server_round) == ("bad", 2):
            raise ConfigError("not today")
        return GlobalSampler(6, seed=1).schedule(num_examples, server_round)


def test_a_sampler_that_raises_stops_a_run_that_is_saved(tmp_path: Path) -> None:
    rarely = Checkpoints(folder=tmp_path / "checkpoints", every_rounds=None)
    whole = learned(run("step", tmp_path / "whole", sampler=Moody("good")), tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"not today The run is saved up to the end of round 1"):
        run("step", tmp_path, sampler=Moody("bad"), checkpoints=rarely)
    again = run("step", tmp_path, sampler=Moody("good"), checkpoints=rarely)
    assert learned(again, tmp_path) == whole


class Raising(MortalClient):
    """A client that raises in the third step, if it is client 9."""

    def handle(self, request: StepRequest) -> StepReply:
        if (request.id.client_key, request.id.step) == (9, 3):
            raise RuntimeError("out of memory")
        return self.client.handle(request)


def test_a_run_that_stops_unsaved_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ClientError, match=r"out of memory.* saved up to the start, in"):
        run(
            "round",
            tmp_path,
            lambda client: Raising(client.client, client.fuse),
            state_dir=False,
            failures=FailurePolicy(min_clients=3),
        )
    assert last(tmp_path) == (1, 0)
    assert "no checkpoint of round 1, step 2: " in caplog.text
    assert "; the run stops, and the last checkpoint is that of the start" in caplog.text
    assert "the run goes on" not in caplog.text


def test_a_step_of_which_a_part_is_taken_is_not_saved(tmp_path: Path) -> None:
    calls = iter(range(10**6))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        # In the second step, after one client's update; once, so that no client is found guilty.
        if next(calls) == 4:
            raise RuntimeError("no luck")
        return cross_entropy(outputs, labels)

    with pytest.raises(PslError, match=r"raised RuntimeError: no luck.* saved up to the start"):
        run("round, one by one", tmp_path, loss_fn=loss)
    assert last(tmp_path) == (1, 0)
