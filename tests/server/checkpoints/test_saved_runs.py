"""What a run that is saved does beside going on: refusing, telling, stopping."""

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy
from torch import nn
from torch.nn import functional

from flower_psl import (
    CheckpointError,
    Checkpoints,
    ClientError,
    ConfigError,
    FailurePolicy,
    FixedLocalSampler,
    GlobalSampler,
    ProtocolError,
    PslError,
    run_in_process,
)
from flower_psl.telemetry import versions
from flower_psl.transport import InProcessTransport
from flower_psl.wire import Phase, StepReply, StepRequest
from tests.server.checkpoints.resumable import (
    NUM_ROUNDS,
    SETTINGS,
    Fuse,
    Killed,
    MortalClient,
    Setting,
    build_model,
    left_behind,
    make_clients,
    make_strategy,
    momentum,
    run,
)

STEP = replace(SETTINGS["step"], fraction_evaluate=0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, and do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name in ("draw_rounds", "draw_schedule"):
        monkeypatch.setattr(f"flower_psl.telemetry.run_recorder.{name}", lambda *args: [])


def run_with(
    clients: Mapping[int, Any], folder: Path, num_rounds: int = NUM_ROUNDS, **changes: Any
) -> Result:
    return run_in_process(
        make_strategy(STEP, folder, **changes),
        clients,
        ArrayRecord(build_model().state_dict()),
        num_rounds=num_rounds,
    )


def stopped(folder: Path, moment: int = 20) -> None:
    with pytest.raises(Killed):
        run(STEP, folder, Fuse(moment))


class Failing(MortalClient):
    """A client that raises from one of its steps on."""

    def handle(self, request: StepRequest) -> StepReply:
        if (request.id.server_round, request.id.step) >= (1, 3):
            raise RuntimeError("out of memory")
        return self.client.handle(request)


def test_a_run_with_too_few_clients_left_is_saved_and_says_how_to_go_on(tmp_path: Path) -> None:
    policy = FailurePolicy(min_clients=3)
    failing = {key: Failing(c.client, c.fuse) for key, c in make_clients(None, Fuse()).items()}
    clients = make_clients(None, Fuse()) | {9: failing[9]}
    once_a_round = Checkpoints(folder=tmp_path / "checkpoints")
    with pytest.raises(ClientError) as info:
        run_with(clients, tmp_path, failures=policy, checkpoints=once_a_round)
    assert "out of memory" in str(info.value)
    assert "FailurePolicy.min_clients is 3" in str(info.value)
    [*_, last] = once_a_round.versions.versions()
    assert last.server_round == 1 and last.step > 0
    assert str(info.value).endswith(
        f"The run is saved up to {last}, in {tmp_path}/checkpoints; start it again to go on from "
        "there."
    )
    for _ in range(2):  # it fails again, and no step is taken while it rests
        with pytest.raises(ClientError, match=r"FailurePolicy\.min_clients is 3"):
            run_with(clients, tmp_path, failures=policy, checkpoints=once_a_round)
        assert once_a_round.versions.versions()[-1] == last
    result = run_with(
        make_clients(None, Fuse()), tmp_path, failures=policy, checkpoints=once_a_round
    )
    assert_trained(result, tmp_path)


def assert_trained(result: Result, folder: Path) -> None:
    """Every example was used in every round, in steps that follow each other."""
    steps = left_behind(result, folder / "out")["steps"]
    places = [(step["round"], step["step"]) for step in steps]
    assert places == sorted(set(places))
    for server_round, metrics in result.train_metrics_clientapp.items():
        assert (metrics["num-examples"], metrics["not-seen"]) == (21, 0), server_round
        assert metrics["num-steps"] == sum(place[0] == server_round for place in places)


def test_a_run_that_stopped_with_nobody_left_trains_when_all_are_back(tmp_path: Path) -> None:
    once_a_round = Checkpoints(folder=tmp_path / "checkpoints")
    failing = {key: Failing(c.client, c.fuse) for key, c in make_clients(None, Fuse()).items()}
    for _ in range(3):  # each of them now rests for some steps, which nobody is there to take
        with pytest.raises(ClientError, match="That leaves 0 of the clients"):
            run_with(failing, tmp_path, checkpoints=once_a_round)
    result = run_with(make_clients(None, Fuse()), tmp_path, checkpoints=once_a_round)
    assert_trained(result, tmp_path)


def test_what_a_step_met_before_the_run_stopped_is_in_its_record(tmp_path: Path) -> None:
    clients = make_clients(None, Fuse())
    failing = {**clients, 9: Failing(clients[9].client, clients[9].fuse)}

    def go_on(min_clients: int) -> Result:
        policy = FailurePolicy(min_clients=min_clients, max_redraws=1)
        every_round = Checkpoints(folder=tmp_path / "checkpoints")
        return run_with(failing, tmp_path, failures=policy, checkpoints=every_round)

    for _ in range(2):
        with pytest.raises(ClientError, match="out of memory"):
            go_on(min_clients=3)
    # After a restart a step may be discarded as often in a row as ever.
    steps = left_behind(go_on(min_clients=1), tmp_path / "out")["steps"]
    third, fourth, *_ = (step for step in steps if step["redraws"] or step["failed"])
    assert (third["round"], third["step"], third["redraws"]) == (1, 3, 3)
    assert "out of memory" in third["failed"]["9"]
    assert (fourth["round"], fourth["redraws"]) == (2, 1)


class Lying(MortalClient):
    """A client with values that cannot be used."""

    def handle(self, request: StepRequest) -> StepReply:
        reply = self.client.handle(request)
        assert reply.activations is not None
        return replace(reply, activations=reply.activations * torch.nan)


def test_who_is_out_for_good_comes_back_to_a_resumed_run_if_more_is_forgiven(
    tmp_path: Path,
) -> None:
    clients = make_clients(None, Fuse())
    lying = {**clients, 9: Lying(clients[9].client, clients[9].fuse)}
    said = r"Clients \[9\] are out for good, with FailurePolicy.max_offences at 1: .* is raised"
    with pytest.raises(ProtocolError, match=said):
        run_with(lying, tmp_path, failures=FailurePolicy(min_clients=3, max_offences=1))
    with pytest.raises(ClientError, match=said):  # although it is honest now
        run_with(clients, tmp_path, failures=FailurePolicy(min_clients=3, max_offences=1))
    result = run_with(clients, tmp_path, failures=FailurePolicy(min_clients=3, max_offences=2))
    assert_trained(result, tmp_path)


def test_no_step_is_taken_with_too_few_when_a_run_is_resumed(tmp_path: Path) -> None:
    policy = FailurePolicy(min_clients=3)
    stopped(tmp_path)
    [*_, before] = Checkpoints(folder=tmp_path / "checkpoints").versions.versions()
    clients = make_clients(None, Fuse())
    lost = clients.pop(9)
    text = r"client 9: it is not there .* That leaves 2 of .* FailurePolicy.min_clients is 3"
    with pytest.raises(ClientError, match=text):
        run_with(clients, tmp_path, failures=policy)
    [*_, after] = Checkpoints(folder=tmp_path / "checkpoints").versions.versions()
    assert after == before
    assert_trained(run_with({**clients, 9: lost}, tmp_path, failures=policy), tmp_path)


def test_who_was_out_may_take_the_place_of_who_is_absent(tmp_path: Path) -> None:
    policy = FailurePolicy(min_clients=2)
    clients = make_clients(None, Fuse())
    failing = {key: Failing(c.client, c.fuse) for key, c in clients.items()}
    with pytest.raises(ClientError, match="out of memory"):
        run_with({2: clients[2], 5: failing[5], 9: failing[9]}, tmp_path, failures=policy)
    result = run_with({2: clients[2], 5: clients[5]}, tmp_path, failures=policy)
    assert result.train_metrics_clientapp[NUM_ROUNDS]["num-examples"] == 11


def test_a_client_that_stays_away_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    clients = make_clients(None, Fuse())
    del clients[5]
    result = run_with(clients, tmp_path)
    assert "client 5 is left out" in caplog.text
    assert "client 5: it is not there when the run is resumed" in caplog.text
    last = result.train_metrics_clientapp[NUM_ROUNDS]
    assert (last["num-examples"], last["not-seen"]) == (17, 4)


@pytest.mark.parametrize("name", ["round, copies", "none"])
def test_what_a_device_trained_that_stays_away_is_left_out(name: str, tmp_path: Path) -> None:
    setting = replace(SETTINGS[name], fraction_evaluate=0.0)
    with pytest.raises(Killed):
        run(setting, tmp_path, Fuse(30))
    clients = make_clients(tmp_path / "devices", Fuse())
    del clients[9]
    result = run_in_process(
        make_strategy(setting, tmp_path),
        clients,
        ArrayRecord(build_model().state_dict()),
        num_rounds=NUM_ROUNDS,
    )
    last = result.train_metrics_clientapp[NUM_ROUNDS]
    assert (last["num-examples"], last["not-seen"]) == (11, 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 9}, "seed is 0 there and 9 here"),
        ({"sampler": GlobalSampler(5, seed=1)}, "sampler is .*batch_size=6.* there and .*=5"),
        ({"sampler": FixedLocalSampler(batch_size=2)}, "sampler is .*schedule of round 1"),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss is .*label_smoothing=0.1"),
        (
            {"loss_fn": partial(functional.cross_entropy, label_smoothing=0.1)},
            r"loss is .* and 'cross_entropy\(label_smoothing=0.1\)' here",
        ),
        ({"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(3))}, "loss is .*weight=float32"),
        ({"optimizer_fn": momentum}, "optimizer is 'Adam' there and 'SGD' here"),
        ({"lr_scheduler_fn": None}, "schedule is 'CosineAnnealingLR' there and 'none' here"),
        ({"max_grad_norm": None}, "max_grad_norm is 1.0 there and None here"),
        (
            {"optimizer_fn": lambda params: torch.optim.Adam(params, lr=0.5)},
            "optimizer's lr is '0.01' there and '0.5' here",
        ),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    stopped(tmp_path)
    with pytest.raises(CheckpointError, match=rf"\.safetensors: .*another run: .*{said}"):
        run(STEP, tmp_path, **changes)
    # and it is still there for the right one
    assert run(STEP, tmp_path).train_metrics_clientapp.keys() == {1, 2}


def test_the_checkpoint_of_another_client_strategy_is_refused(
    tmp_path: Path, flower_run: None
) -> None:
    setting = SETTINGS["round"]
    with pytest.raises(Killed):
        run_over(setting, tmp_path, Fuse(30), FedAdam(eta=0.1))
    for other, said in ((FedAdam(eta=0.001), "eta=0.001"), (None, "none"), (FedAvg(), "FedAvg")):
        with pytest.raises(
            CheckpointError, match=rf"client_strategy is .*eta=0.1,.* there and .*{said}"
        ):
            run_over(setting, tmp_path, Fuse(), other)
    result = run_over(setting, tmp_path, Fuse(), FedAdam(eta=0.1))
    assert result.train_metrics_clientapp.keys() == {1, 2}


def run_over(
    setting: Setting, folder: Path, fuse: Fuse, client_strategy: Strategy | None
) -> Result:
    """Run with a strategy that needs Flower, without Flower's messages."""
    return make_strategy(
        setting, folder, client_strategy=client_strategy, fraction_evaluate=0.0
    ).run_over(
        InProcessTransport(make_clients(folder / "devices", fuse)),
        ArrayRecord(build_model().state_dict()),
        num_rounds=NUM_ROUNDS,
        timeout=1e6,
        evaluate_fn=None,
        min_nodes=3,
    )


def test_the_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    there = versions()

    def run_by(package: str) -> Result:
        monkeypatch.setattr(
            "flower_psl.server.checkpoints.run_identity.versions", lambda: there | {package: "0.0"}
        )
        return run(STEP, tmp_path)

    own = there["flower-psl"]
    with pytest.raises(CheckpointError, match=rf"another run: flower-psl is '{own}' there and '0"):
        run_by("flower-psl")
    assert run_by("torch").train_metrics_clientapp.keys() == {1, 2}
    assert "torch was" in caplog.text


def test_more_rounds_are_welcome_unless_a_schedule_was_made_for_fewer(tmp_path: Path) -> None:
    clients = make_clients(None, Fuse())
    plain: dict[str, Any] = {"lr_scheduler_fn": None}
    run_with(clients, tmp_path / "plain", **plain)
    more = run_with(clients, tmp_path / "plain", num_rounds=3, **plain)
    assert more.train_metrics_clientapp.keys() == {1, 2, 3}
    at_once = run_with(clients, tmp_path / "at once", num_rounds=3, **plain)
    ours, theirs = (result.arrays.to_torch_state_dict() for result in (more, at_once))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    run_with(clients, tmp_path / "cosine")
    with pytest.raises(CheckpointError, match="steps of the schedule is 8 there and 12 here"):
        run_with(clients, tmp_path / "cosine", num_rounds=3)


def test_a_run_that_has_ended_is_not_trained_again(tmp_path: Path) -> None:
    expected = left_behind(run(STEP, tmp_path), tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    again = run(STEP, tmp_path, Fuse(0))  # no client is asked for anything
    assert left_behind(again, tmp_path / "out") == expected


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = left_behind(run(STEP, tmp_path / "whole", checkpoints=None), tmp_path / "whole/out")
    stopped(tmp_path)
    folder = tmp_path / "checkpoints"
    *_, newest = Checkpoints(folder=folder).versions.versions()
    path = folder / newest.file_name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert left_behind(run(STEP, tmp_path), tmp_path / "out") == expected
    assert f"{newest.file_name}: its checksum" in caplog.text
    assert "resumed from" in caplog.text


def test_a_folder_with_checkpoints_is_not_begun_anew_unasked(tmp_path: Path) -> None:
    stopped(tmp_path)
    never = Checkpoints(folder=tmp_path / "checkpoints", resume="never")
    with pytest.raises(ConfigError, match=r"resume is 'never'; .* Name another folder"):
        run(STEP, tmp_path, checkpoints=never)
    assert (tmp_path / "out" / "steps.jsonl").read_text()  # nothing is removed


@pytest.mark.parametrize(("name", "refused"), [("round", True), ("none", True), ("step", False)])
def test_devices_that_train_by_themselves_need_a_folder(
    name: str, refused: bool, tmp_path: Path
) -> None:
    strategy = make_strategy(SETTINGS[name], tmp_path)
    clients, arrays = make_clients(None, Fuse()), ArrayRecord(build_model().state_dict())
    if not refused:
        run_in_process(strategy, clients, arrays, num_rounds=1)
        return
    with pytest.raises(ClientError, match=r"node 2: its SplitClient has no state_dir; .* Make it"):
        run_in_process(strategy, clients, arrays, num_rounds=1)


def test_rounds_of_devices_without_a_folder_are_saved_at_their_end(tmp_path: Path) -> None:
    setting = replace(SETTINGS["round"], every_steps=None, fraction_evaluate=0.0)
    expected = left_behind(run(setting, tmp_path / "a", checkpoints=None), tmp_path / "a" / "out")

    def train(fuse: Fuse) -> Result:
        return run_in_process(
            make_strategy(setting, tmp_path),
            make_clients(None, fuse),
            ArrayRecord(build_model().state_dict()),
            num_rounds=NUM_ROUNDS,
        )

    with pytest.raises(Killed):
        train(Fuse(35))
    ours = left_behind(train(Fuse()), tmp_path / "out")
    assert ours["weights"] == expected["weights"]
    assert ours["steps"] == expected["steps"]


def test_a_device_that_has_lost_its_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(SETTINGS["none"], tmp_path, Fuse(30))
    for path in (tmp_path / "devices" / "client-9").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ClientError, match=r"client 9, .*CheckpointError: .*No such file.*Bring"):
        run(SETTINGS["none"], tmp_path)


class Interrupted(MortalClient):
    """A client in whose step somebody presses Ctrl-C."""

    def handle(self, request: StepRequest) -> StepReply:
        if (request.id.step, request.phase) == (2, Phase.FORWARD):
            signal.raise_signal(signal.SIGINT)
        return self.client.handle(request)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_saves_the_step_that_is_being_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr.psl")
    once_a_round = Checkpoints(folder=tmp_path / "checkpoints")
    clients = make_clients(None, Fuse())
    interrupted = {**clients, 2: Interrupted(clients[2].client, clients[2].fuse)}
    with pytest.raises(KeyboardInterrupt):
        run_with(interrupted, tmp_path, checkpoints=once_a_round)
    assert once_a_round.versions.versions()[-1] == (1, 2)
    assert "SIGINT: the run stops after this step" in caplog.text
    assert f"The run is saved up to round 1, step 2, in {tmp_path}/checkpoints" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_records_that_begin_late_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        run(STEP, tmp_path, Fuse(20), recorder=None)
    run(STEP, tmp_path)
    assert "records begin where it is resumed" in caplog.text


def test_steps_that_are_gone_are_refused_and_a_run_may_go_on_without(tmp_path: Path) -> None:
    stopped(tmp_path)
    (tmp_path / "out" / "steps.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"steps.jsonl has 0 bytes; .*without a recorder"):
        run(STEP, tmp_path)
    assert run(STEP, tmp_path, recorder=None).train_metrics_clientapp.keys() == {1, 2}


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "hook": max}

    fuse = Fuse(0)
    with pytest.raises(PslError, match=r"cannot be saved in .*optimizer/hook is a builtin"):
        run(STEP, tmp_path, fuse, optimizer_fn=lambda params: Odd(params, lr=0.1))


def test_a_run_that_cannot_go_on_is_saved_in_mid_round(tmp_path: Path) -> None:
    """Whatever stops it; here a round's time is over."""
    once_a_round = Checkpoints(folder=tmp_path / "checkpoints")
    times = iter(range(0, 10**9, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flower_psl.server.training_run.time.monotonic", lambda: float(next(times)))
        with pytest.raises(PslError, match=r"the round took longer than .*The run is saved up to"):
            run_in_process(
                make_strategy(STEP, tmp_path, checkpoints=once_a_round),
                make_clients(None, Fuse()),
                ArrayRecord(build_model().state_dict()),
                num_rounds=NUM_ROUNDS,
            )
    *_, last = once_a_round.versions.versions()
    assert last.step > 0
    whole = run_with(make_clients(None, Fuse()), tmp_path / "whole", checkpoints=None)
    expected = left_behind(whole, tmp_path / "whole/out")
    resumed = run_with(make_clients(None, Fuse()), tmp_path, checkpoints=once_a_round)
    assert left_behind(resumed, tmp_path / "out") == expected


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    *_, newest = Checkpoints(folder=tmp_path / "checkpoints").versions.versions()
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == newest.file_name:
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    run(STEP, tmp_path)
    assert f"{newest.file_name}: Input/output error" in caplog.text
    assert "resumed from" in caplog.text
