import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from torch.utils.data import TensorDataset

from flower_psl import (
    BatchSchedule,
    ClientError,
    ConfigError,
    FailurePolicy,
    GlobalSampler,
    ParallelSplitLearning,
    QuotaSampler,
    RunRecorder,
    Sampler,
    SequentialSampler,
    SplitClient,
    WaitError,
    cut,
    run_in_process,
)
from flower_psl.transport import Answers, Device, InProcessTransport
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest

if TYPE_CHECKING:
    from tests.conftest import FakeTime

Make = Callable[..., ParallelSplitLearning]
NUM_EXAMPLES = 7 + 4 + 10


class Custom(Sampler):
    """Returns what it is given."""

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule

    def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
        schedule: BatchSchedule = self._schedule
        return schedule


class Watched:
    def __init__(self, client: SplitClient, fails_in: tuple[int, int] | None = None) -> None:
        self._client = client
        self._fails_in = fails_in
        self.used: dict[int, list[int]] = {}

    def describe(self) -> DescribeReply:
        return self._client.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        step = request.id
        if (step.server_round, step.step) == self._fails_in:
            raise OSError("the camera is gone")
        if request.phase is Phase.FORWARD:
            used = self.used.setdefault(step.server_round, [])
            used += range(step.start, step.start + step.batch_size)
        return self._client.handle(request)


def test_a_round_uses_every_example_of_every_client_once(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    watched = {key: Watched(client) for key, client in clients.items()}
    result = run_in_process(make_strategy(), watched, arrays, num_rounds=2)
    for key, count in {2: 7, 5: 4, 9: 10}.items():
        assert watched[key].used == {1: list(range(count)), 2: list(range(count, 2 * count))}
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["num-examples"] == NUM_EXAMPLES
        assert metrics["num-steps"] == 3


def test_every_round_has_its_metrics(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    result = run_in_process(make_strategy(), clients, arrays, num_rounds=2)
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert list(result.evaluate_metrics_clientapp) == [1, 2]
    assert result.evaluate_metrics_serverapp == {}
    assert set(result.evaluate_metrics_clientapp[2]) == {"loss", "num-examples", "accuracy"}
    assert result.evaluate_metrics_clientapp[2]["num-examples"] == 8


def test_the_train_loss_is_the_mean_over_examples(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    strategy = make_strategy(recorder=RunRecorder(tmp_path))
    result = run_in_process(strategy, clients, arrays, num_rounds=1)
    steps = read_steps(tmp_path)
    mean = sum(step["loss"] * step["effective_batch_size"] for step in steps) / NUM_EXAMPLES
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(mean)


@pytest.mark.parametrize(("fraction", "evaluated"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_a_share_of_the_clients_evaluates(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fraction: float,
    evaluated: int,
) -> None:
    asked: set[int] = set()

    class Evaluated(Watched):
        def handle(self, request: StepRequest) -> StepReply:
            if request.phase is Phase.EVALUATE:
                asked.add(request.id.client_key)
            return super().handle(request)

    watched = {key: Evaluated(client) for key, client in clients.items()}
    strategy = make_strategy(fraction_evaluate=fraction)
    result = run_in_process(strategy, watched, arrays, num_rounds=1)
    assert len(asked) == evaluated
    assert bool(result.evaluate_metrics_clientapp) is bool(evaluated)


@pytest.mark.parametrize(("bound", "steps"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_a_round_may_be_bounded(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    bound: int,
    steps: int,
) -> None:
    totals: list[int] = []

    def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        totals.append(total_steps)
        return ConstantLR(optimizer)

    strategy = make_strategy(steps_per_round=bound, lr_scheduler_fn=constant)
    result = run_in_process(strategy, clients, arrays, num_rounds=2)
    assert result.train_metrics_clientapp[2]["num-steps"] == steps
    assert totals == [2 * steps]


def test_a_client_without_data_takes_no_part(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    empty = TensorDataset(torch.empty(0, 6).double(), torch.empty(0).long())
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    watched = Watched(SplitClient(cut(model, at="1").client, empty))
    run_in_process(make_strategy(), {**clients, 4: watched}, arrays, num_rounds=1)
    assert watched.used == {}


def read_steps(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    strategy = make_strategy(
        recorder=RunRecorder(tmp_path), model_name="mlp", method="ours", seed=5
    )
    result = run_in_process(
        strategy,
        clients,
        arrays,
        num_rounds=2,
        evaluate_fn=lambda server_round, arrays: MetricRecord({"accuracy": server_round / 4}),
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: summary[name] for name in ("method", "sampler", "model", "cut", "seed")} == {
        "method": "ours",
        "sampler": "GPSL",
        "model": "mlp",
        "cut": "1",
        "seed": 5,
    }
    assert (summary["num_clients"], summary["num_examples"]) == (3, NUM_EXAMPLES)
    assert (summary["rounds"], summary["steps"], summary["transport"]) == (2, 6, "in-process")
    # Central metrics come before those of the clients.
    assert (summary["final_accuracy"], summary["best_accuracy"]) == (0.5, 0.5)
    assert [(step["round"], step["step"]) for step in read_steps(tmp_path)] == [
        (server_round, step) for server_round in (1, 2) for step in (1, 2, 3)
    ]
    weights = load_file(tmp_path / "model.safetensors")
    for name, tensor in result.arrays.to_torch_state_dict().items():
        assert torch.equal(weights[name], tensor)


def test_what_repeating_a_run_needs_of_the_sampler_is_in_the_summary(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    sampler = QuotaSampler(GlobalSampler(batch_size=5), quota={9: 0.5})
    strategy = make_strategy(sampler=sampler, recorder=RunRecorder(tmp_path))
    result = run_in_process(strategy, clients, arrays, num_rounds=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sampler_details"] == {
        "client_weights": {"2": 7 / 16, "5": 4 / 16, "9": 5 / 16}
    }
    assert result.train_metrics_clientapp[1]["num-examples"] == 16


def test_what_the_transport_refused_is_in_the_summary(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    class Attacked(InProcessTransport):
        @property
        def refused(self) -> dict[str, int]:
            return {"wrong token": 2}

    make_strategy(recorder=RunRecorder(tmp_path)).run_over(
        Attacked(clients), arrays, num_rounds=1, timeout=60, evaluate_fn=None, min_nodes=3
    )
    assert json.loads((tmp_path / "summary.json").read_text())["refused"] == {"wrong token": 2}


def test_split_evaluation_fills_the_summary_where_there_is_no_central_one(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    strategy = make_strategy(recorder=RunRecorder(tmp_path))
    result = run_in_process(strategy, clients, arrays, num_rounds=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = result.evaluate_metrics_clientapp[1]
    assert (summary["final_accuracy"], summary["final_loss"]) == (
        metrics["accuracy"],
        metrics["loss"],
    )


def test_a_run_that_fails_leaves_no_summary_and_its_recorder_free(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    strategy = make_strategy(recorder=RunRecorder(tmp_path), failures=FailurePolicy(min_clients=3))
    failing: dict[int, Device] = {**clients, 9: Watched(clients[9], fails_in=(2, 1))}
    with pytest.raises(ClientError, match=r"client 9, round 2, step 1: .*OSError: the camera is"):
        run_in_process(strategy, failing, arrays, num_rounds=2)
    assert not (tmp_path / "summary.json").exists()
    assert len(read_steps(tmp_path)) == 3
    run_in_process(strategy, clients, arrays, num_rounds=1)
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("num_rounds", [0, -1])
def test_a_run_without_rounds_is_refused(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, num_rounds: int
) -> None:
    with pytest.raises(ConfigError, match=f"num_rounds is {num_rounds}; a run has 1 round or mo"):
        run_in_process(make_strategy(), clients, arrays, num_rounds=num_rounds)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_run_without_time_is_refused(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, timeout: float
) -> None:
    with pytest.raises(ConfigError, match=f"timeout is {timeout}; it must be more than 0 seconds"):
        run_in_process(make_strategy(), clients, arrays, timeout=timeout)


def test_a_round_that_takes_too_long_ends_the_run(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    with pytest.raises(
        WaitError, match="round 1, step 1: the round took longer than 1e-12 s; raise the timeout"
    ):
        run_in_process(make_strategy(), clients, arrays, timeout=1e-12)


def test_no_exchange_may_outlast_its_round(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    bounds: list[float] = []

    class Bounded(InProcessTransport):
        def exchange(
            self, requests: Mapping[int, StepRequest], timeout_s: float
        ) -> Answers[StepReply]:
            bounds.append(timeout_s)
            return super().exchange(requests, timeout_s)

    for step_timeout_s, timeout in ((20.0, 3600.0), (300.0, 100.0)):
        make_strategy(
            failures=FailurePolicy(step_timeout_s=step_timeout_s), fraction_evaluate=0.0
        ).run_over(
            Bounded(clients),
            arrays,
            num_rounds=1,
            timeout=timeout,
            evaluate_fn=None,
            min_nodes=3,
        )
    assert bounds[:6] == [20.0] * 6
    assert all(0 < bound < 100 for bound in bounds[6:])


class Slow(InProcessTransport):
    """Every exchange takes its time by a clock, and keeps the bound that it was given."""

    def __init__(self, clients: Mapping[int, Device], clock: "FakeTime", takes_s: float) -> None:
        super().__init__(clients)
        self.bounds: list[tuple[Phase, float]] = []
        self._clock = clock
        self._takes_s = takes_s

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        self.bounds.append((next(iter(requests.values())).phase, timeout_s))
        self._clock.sleep(self._takes_s)
        return super().exchange(requests, timeout_s)


def test_the_bound_of_a_round_holds_for_both_exchanges_of_a_step(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fake_time: "FakeTime",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flower_psl.server.training_run.time", fake_time)
    transport = Slow(clients, fake_time, takes_s=15.0)
    strategy = make_strategy(failures=FailurePolicy(step_timeout_s=40.0), fraction_evaluate=0.0)
    with pytest.raises(WaitError, match="round 1, step 2: the round took longer than 45 s; raise"):
        strategy.run_over(
            transport, arrays, num_rounds=1, timeout=45.0, evaluate_fn=None, min_nodes=3
        )
    # The first exchange of step 2 uses up what the round has; the second is not begun.
    assert transport.bounds == [
        (Phase.FORWARD, 40.0),
        (Phase.BACKWARD, 30.0),
        (Phase.FORWARD, 15.0),
    ]


def test_a_schedule_of_unknown_clients_is_refused(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    sampler = Custom(BatchSchedule.from_steps([{2: 1, 6: 1}], {2: 7, 6: 7}))
    with pytest.raises(
        ConfigError, match=r"for round 1 names the clients \[6\]; the run has \[2, 5, 9\]\. Use"
    ):
        run_in_process(make_strategy(sampler=sampler), clients, arrays)


@pytest.mark.parametrize("schedule", [None, [{2: 1}]])
def test_what_is_no_schedule_is_refused(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, schedule: Any
) -> None:
    with pytest.raises(ConfigError, match=r"for round 1 is a .*; it must be a BatchSchedule"):
        run_in_process(make_strategy(sampler=Custom(schedule)), clients, arrays)


def test_a_schedule_of_ones_own_is_followed(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord, tmp_path: Path
) -> None:
    steps = [{2: 4}, {2: 1, 9: 3}, {9: 1}]
    sampler = Custom(BatchSchedule.from_steps(steps, {2: 7, 5: 4, 9: 10}))
    recorder = RunRecorder(tmp_path)
    run_in_process(
        make_strategy(sampler=sampler, recorder=recorder), clients, arrays, num_rounds=1
    )
    assert [step["clients"] for step in read_steps(tmp_path)] == [
        {str(key): size for key, size in step.items()} for step in steps
    ]


@pytest.mark.parametrize("build", [nn.BatchNorm1d, nn.Identity])
def test_batch_norm_in_front_of_the_cut_is_mentioned_once(
    make_strategy: Make,
    train_sets: dict[int, TensorDataset],
    caplog: pytest.LogCaptureFixture,
    build: Callable[[int], nn.Module],
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), build(8), nn.Linear(8, 3)).double()
    split = cut(model, at="1")
    client: dict[int, Device] = {9: SplitClient(split.client, train_sets[9])}
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        run_in_process(
            make_strategy(model=split), client, ArrayRecord(model.state_dict()), num_rounds=2
        )
    warnings = [record.getMessage() for record in caplog.records]
    if build is nn.Identity:
        assert warnings == []
    else:
        assert len(warnings) == 1
        for text in ("(1)", "to_group_norm(model)", "min_client_batch"):
            assert text in warnings[0]


def test_rounds_are_logged(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "flwr.psl"):
        run_in_process(make_strategy(), clients, arrays, num_rounds=2)
    assert "3 clients with 21 examples; 2 rounds of 3 steps; GPSL, cut at '1'" in caplog.text
    assert "[ROUND 2/2] train loss" in caplog.text
    assert "test accuracy" in caplog.text


def test_a_run_that_fails_before_it_starts_leaves_no_earlier_summary(
    make_strategy: Make, arrays: ArrayRecord, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    strategy = make_strategy(recorder=RunRecorder(tmp_path))
    nobody = SplitClient(strategy.model.client, TensorDataset(torch.empty(0, 6), torch.empty(0)))
    with pytest.raises(ClientError, match="none of the 1 clients has training data"):
        run_in_process(strategy, {0: nobody}, arrays, num_rounds=1)
    assert not (tmp_path / "summary.json").exists()


class Flaky(Watched):
    """Fails in some attempts, which are counted from 1, and no others."""

    def __init__(self, client: SplitClient, *attempts: int) -> None:
        super().__init__(client)
        self._attempts = attempts
        self.asked: list[tuple[int, int, int]] = []

    def handle(self, request: StepRequest) -> StepReply:
        if request.phase is Phase.FORWARD:
            self.asked.append((request.id.server_round, request.id.plan, request.id.step))
            if len(self.asked) in self._attempts:
                raise OSError("the camera is gone")
        return super().handle(request)


def test_a_step_that_fails_is_drawn_anew_and_all_of_it_is_in_the_records(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flaky = Flaky(clients[9], 1)
    strategy = make_strategy(recorder=RunRecorder(tmp_path))
    with caplog.at_level(logging.INFO, "flwr.psl"):
        result = run_in_process(strategy, {**clients, 9: flaky}, arrays, num_rounds=1)
    first, second, *_ = read_steps(tmp_path)
    assert (first["plan"], first["redraws"]) == (1, 1)
    assert set(first["clients"]) <= {"2", "5"}
    assert "OSError: the camera is gone" in first["failed"]["9"]
    assert (second["plan"], second["redraws"], second["failed"]) == (2, 0, {})
    assert result.train_metrics_clientapp[1]["num-examples"] == NUM_EXAMPLES
    assert result.train_metrics_clientapp[1]["not-seen"] == 0
    assert result.train_metrics_clientapp[1]["redrawn"] == 8
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["failures"] == {"9": {"failed or lost": 1}}
    assert summary["inclusion"] == {"2": 1.0, "5": 1.0, "9": 1.0}
    assert (summary["not_seen"], summary["redrawn"]) == (0, 8)
    for line in (
        "client 9 is left out (failed or lost): client 9, round 1, step 1: the client raised",
        "round 1, step 1 is discarded; what is left of its 8 examples is drawn anew",
        "client 9, node 9: it is back and takes part again",
        "0 examples not seen",
    ):
        assert line in caplog.text


def test_over_messages_a_client_comes_back_with_the_next_round(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    class Messages(InProcessTransport):
        name = "messages"

    flaky = Flaky(clients[9], 1)
    result = make_strategy().run_over(
        Messages({**clients, 9: flaky}),
        arrays,
        num_rounds=2,
        timeout=60,
        evaluate_fn=None,
        min_nodes=3,
    )
    assert [asked[0] for asked in flaky.asked].count(1) == 1
    assert result.train_metrics_clientapp[1]["num-examples"] == 11
    assert result.train_metrics_clientapp[1]["not-seen"] == 10
    assert result.train_metrics_clientapp[2]["num-examples"] == NUM_EXAMPLES
    assert flaky.used == {2: list(range(10, 20))}


def test_a_run_whose_steps_are_never_taken_stops(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    broken = {key: Flaky(clients[key], *range(1, 9)) for key in (2, 5)}
    strategy = make_strategy(
        sampler=SequentialSampler(batch_size=4), failures=FailurePolicy(max_redraws=1)
    )
    with pytest.raises(
        ClientError,
        match=r"round 1, step 1 was discarded 2 times in a row; FailurePolicy.max_redraws is 1\. "
        r"Lower its quorum, .* The last one: client 5, round 1, step 1: the client raised OSErr",
    ):
        run_in_process(strategy, {**clients, **broken}, arrays, num_rounds=1)


def test_a_client_that_fails_in_evaluation_is_missing_from_it(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    class NoTest(Watched):
        def handle(self, request: StepRequest) -> StepReply:
            if request.phase is Phase.EVALUATE and request.id.server_round == 1:
                raise OSError("the camera is gone")
            return super().handle(request)

    result = run_in_process(
        make_strategy(), {**clients, 9: NoTest(clients[9])}, arrays, num_rounds=2
    )
    first, second = (result.evaluate_metrics_clientapp[i] for i in (1, 2))
    assert (first["num-examples"], first["missing-clients"]) == (3, [9])
    assert second["num-examples"] == 8
    assert "missing-clients" not in second
    assert result.train_metrics_clientapp[2]["num-examples"] == NUM_EXAMPLES
