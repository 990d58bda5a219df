import copy
import inspect
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Krum,
    Strategy,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_psl import (
    ConfigError,
    FailurePolicy,
    GlobalSampler,
    ParallelSplitLearning,
    PslError,
    RunRecorder,
    SplitClient,
    SplitModel,
    StreamSettings,
    WaitError,
    cut,
    run_in_process,
)
from flower_psl.wire import DescribeReply, StepRequest, records

if TYPE_CHECKING:
    from tests.conftest import Answer, FakeGrid, FakeTime

Make = Callable[..., ParallelSplitLearning]


def node(client: SplitClient, client_key: int) -> "Answer":
    """Answer Flower's messages with a client."""

    def answer(message: Message) -> Message:
        if message.metadata.message_type == "query.psl_describe":
            content = records.encode_description(client.describe(client_key))
        else:
            request: StepRequest = records.decode_request(message.content)
            content = records.encode_reply(client.handle(request))
        return Message(content, reply_to=message)

    return answer


def test_it_is_started_as_any_strategy() -> None:
    assert issubclass(ParallelSplitLearning, Strategy)
    ours, theirs = (
        inspect.signature(ParallelSplitLearning.start),
        inspect.signature(Strategy.start),
    )
    assert list(ours.parameters) == list(theirs.parameters)
    for name, parameter in theirs.parameters.items():
        assert ours.parameters[name].default == parameter.default
        assert ours.parameters[name].kind == parameter.kind


@pytest.mark.parametrize("name", ["train_config", "evaluate_config"])
def test_configuration_for_clients_is_refused(
    make_strategy: Make, arrays: ArrayRecord, fake_grid: "type[FakeGrid]", name: str
) -> None:
    config: dict[str, Any] = {name: ConfigRecord({"lr": 0.1})}
    with pytest.raises(ConfigError, match=rf"{name} is {{'lr': 0.1}}; .* sends no.* Use the run"):
        make_strategy().start(fake_grid({}), arrays, **config)


def test_the_methods_of_one_exchange_a_round_are_refused(
    make_strategy: Make, arrays: ArrayRecord, fake_grid: "type[FakeGrid]"
) -> None:
    strategy, config = make_strategy(), ConfigRecord()
    calls: dict[str, Callable[[], object]] = {
        "configure_train": lambda: strategy.configure_train(1, arrays, config, fake_grid({})),
        "aggregate_train": lambda: strategy.aggregate_train(1, []),
        "configure_evaluate": lambda: strategy.configure_evaluate(
            1, arrays, config, fake_grid({})
        ),
        "aggregate_evaluate": lambda: strategy.aggregate_evaluate(1, []),
    }
    for name, call in calls.items():
        with pytest.raises(PslError, match=rf"^{name}\(\) is one exchange .* Call start\(\)"):
            call()


def test_a_run_over_messages_gives_the_bits_of_one_in_process(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
) -> None:
    direct = run_in_process(make_strategy(), clients, arrays, num_rounds=2)
    # Node ids in another order than client keys.
    grid = fake_grid({1000 - key: node(client, key) for key, client in clients.items()})
    over_messages = make_strategy(transport="messages").start(grid, arrays, num_rounds=2)
    ours, theirs = (result.arrays.to_torch_state_dict() for result in (over_messages, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert over_messages.train_metrics_clientapp == direct.train_metrics_clientapp
    assert over_messages.evaluate_metrics_clientapp == direct.evaluate_metrics_clientapp


@pytest.mark.parametrize("client_strategy", [None, FedAvg()])
def test_client_segments_are_averaged_over_messages_as_in_process(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
    client_strategy: Strategy | None,
) -> None:
    settings: dict[str, Any] = {"client_sync": "round", "transport": "messages"}
    direct = run_in_process(make_strategy(**settings), clients, arrays, num_rounds=2)
    grid = fake_grid({1000 - key: node(client, key) for key, client in clients.items()})
    strategy = make_strategy(client_strategy=client_strategy, **settings)
    over_messages = strategy.start(grid, arrays, num_rounds=2)
    ours, theirs = (result.arrays.to_torch_state_dict() for result in (over_messages, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert over_messages.train_metrics_clientapp == direct.train_metrics_clientapp
    assert over_messages.evaluate_metrics_clientapp == direct.evaluate_metrics_clientapp


class Halfway(FedAvg):
    """Goes half the way from the weights that a round begins with to the mean."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.before = arrays.to_torch_state_dict()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        mean, metrics = super().aggregate_train(server_round, replies)
        assert mean is not None
        after = mean.to_torch_state_dict()
        halves = {name: (self.before[name] + after[name]) / 2 for name in after}
        return ArrayRecord(halves), metrics


def test_a_strategy_of_ones_own_aggregates_the_client_segments(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
) -> None:
    def trained(client_strategy: Strategy | None) -> dict[str, Tensor]:
        grid = fake_grid({1000 - key: node(client, key) for key, client in clients.items()})
        strategy = make_strategy(
            client_sync="round", client_strategy=client_strategy, transport="messages"
        )
        return strategy.start(grid, arrays, num_rounds=1).arrays.to_torch_state_dict()

    before, mean, halfway = arrays.to_torch_state_dict(), trained(None), trained(Halfway())
    for name in ("0.weight", "0.bias"):  # the client segment
        torch.testing.assert_close(halfway[name], (before[name] + mean[name]) / 2)
    for name in ("2.weight", "2.bias"):
        assert torch.equal(halfway[name], mean[name])


@pytest.mark.parametrize(
    ("client_strategy", "wanted"),
    [
        (Krum(), "Krum wants 3 clients"),
        (
            DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 4),
            "DifferentialPrivacyServerSideFixedClipping wants 4 clients",
        ),
    ],
)
def test_a_strategy_with_too_few_clients_that_have_data_is_refused_before_anyone_trains(
    make_strategy: Make,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
    client_strategy: Strategy,
    wanted: str,
) -> None:
    clients[5] = SplitClient(
        cut(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), at="1").client,
        TensorDataset(torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)),
    )
    grid = fake_grid({1000 - key: node(client, key) for key, client in clients.items()})
    strategy = make_strategy(
        client_sync="round",
        client_strategy=client_strategy,
        min_available_nodes=3,
        transport="messages",
    )
    with pytest.raises(ConfigError, match=f"{wanted} in each round, and 2 have .*Lower its min"):
        strategy.start(grid, arrays)
    assert {message.metadata.message_type for message in grid.pushed} == {"query.psl_describe"}


def test_central_evaluation_of_segments_that_are_apart_is_refused_before_anyone_is_asked(
    make_strategy: Make, arrays: ArrayRecord, fake_grid: "type[FakeGrid]"
) -> None:
    grid = fake_grid({})
    with pytest.raises(ConfigError, match=r"evaluate_fn is given with client_sync='none'"):
        make_strategy(client_sync="none").start(
            grid, arrays, evaluate_fn=lambda server_round, whole: None
        )
    assert grid.pushed == []


@pytest.mark.parametrize("transport", ["auto", "stream", "messages"])
def test_start_awaits_its_minimum_of_nodes(
    make_strategy: Make,
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
    fake_time: "FakeTime",
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:
    monkeypatch.setattr("flower_psl.transport.polling.time", fake_time)
    strategy = make_strategy(min_available_nodes=4, node_timeout_s=30.0, transport=transport)
    grid = fake_grid(dict.fromkeys(range(3), lambda message: None))
    with pytest.raises(WaitError, match="3 nodes after 30 s; min_available_nodes is 4"):
        strategy.start(grid, arrays)
    assert grid.pushed == []


def test_a_silent_node_ends_the_run(
    make_strategy: Make,
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
    fake_time: "FakeTime",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flower_psl.transport.flower_messages.time", fake_time)
    grid = fake_grid(dict.fromkeys(range(2), lambda message: None))
    with pytest.raises(WaitError, match="node 0, describing itself: no reply within 5 s"):
        make_strategy(failures=FailurePolicy(step_timeout_s=5.0), transport="messages").start(
            grid, arrays
        )


def test_live_connections_are_tried_first_unless_it_is_told_otherwise(
    make_strategy: Make,
    arrays: ArrayRecord,
    fake_grid: "type[FakeGrid]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []

    class Opened(Exception):
        """Raised where the run would begin."""

    def open_transport(grid: object, name: str, settings: object, **bounds: object) -> object:
        asked.append((grid, name, settings, bounds))
        raise Opened

    monkeypatch.setattr("flower_psl.server.strategy.open_transport", open_transport)
    grid, settings = fake_grid({}), StreamSettings(address="127.0.0.1:0")
    for strategy in (
        make_strategy(stream=settings),
        make_strategy(transport="messages", min_available_nodes=5, node_timeout_s=7.0),
    ):
        with pytest.raises(Opened):
            strategy.start(grid, arrays)
    assert asked == [
        (grid, "auto", settings, {"min_nodes": 2, "node_timeout_s": 120.0}),
        (grid, "messages", StreamSettings(), {"min_nodes": 5, "node_timeout_s": 7.0}),
    ]


@pytest.mark.parametrize(
    ("begin", "error"),
    [
        # Over a grid: a refused argument, and a wait for nodes that do not come.
        (
            lambda strategy, grid, arrays, clients: strategy.start(
                grid, arrays, train_config=ConfigRecord({"lr": 0.1})
            ),
            ConfigError,
        ),
        (lambda strategy, grid, arrays, clients: strategy.start(grid, arrays), WaitError),
        # In process: arrays of another model, and a number of rounds that is refused.
        (
            lambda strategy, grid, arrays, clients: run_in_process(
                strategy, clients, ArrayRecord()
            ),
            ConfigError,
        ),
        (
            lambda strategy, grid, arrays, clients: run_in_process(
                strategy, clients, arrays, num_rounds=0
            ),
            ConfigError,
        ),
    ],
)
def test_a_run_that_does_not_begin_leaves_no_results_of_another(
    make_strategy: Make,
    arrays: ArrayRecord,
    clients: dict[int, SplitClient],
    fake_grid: "type[FakeGrid]",
    fake_time: "FakeTime",
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    begin: Callable[..., object],
    error: type[PslError],
) -> None:
    monkeypatch.setattr("flower_psl.transport.polling.time", fake_time)
    for name in ("summary.json", "steps.jsonl", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(error):
        begin(make_strategy(recorder=RunRecorder(tmp_path)), fake_grid({}), arrays, clients)
    assert [path.name for path in tmp_path.iterdir()] == ["steps.jsonl"]
    assert (tmp_path / "steps.jsonl").read_text() == ""


def test_arrays_keep_keys_dtypes_and_order() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[2].half()
    model.insert(2, _Cast())
    split = cut(model, at="1")
    initial = ArrayRecord(model.state_dict())
    data = torch.utils.data.TensorDataset(torch.rand(8, 6), torch.arange(8) % 3)
    strategy = ParallelSplitLearning(
        model=split,
        sampler=GlobalSampler(batch_size=8, seed=0),
        loss_fn=lambda outputs, labels: nn.functional.cross_entropy(outputs.float(), labels),
        optimizer_fn=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    result = run_in_process(
        strategy, {0: SplitClient(copy.deepcopy(split.client), data)}, initial, num_rounds=1
    )
    ours = result.arrays.to_torch_state_dict()
    assert list(ours) == list(model.state_dict())
    assert [tensor.dtype for tensor in ours.values()] == [
        tensor.dtype for tensor in model.state_dict().values()
    ]
    assert ours["1.num_batches_tracked"] == 1


class _Cast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.half()


def test_neither_the_model_nor_the_initial_arrays_are_changed(
    make_strategy: Make,
    split: SplitModel,
    clients: dict[int, SplitClient],
    arrays: ArrayRecord,
) -> None:
    other = {name: tensor + 1 for name, tensor in split.state_dict().items()}
    initial = ArrayRecord(other)
    before, modes = copy.deepcopy(split.state_dict()), [m.training for m in _modules(split)]
    result = run_in_process(make_strategy(), clients, initial, num_rounds=1)
    for name, tensor in split.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(initial.to_torch_state_dict()[name], other[name])
        assert not torch.equal(result.arrays.to_torch_state_dict()[name], other[name])
    assert [module.training for module in _modules(split)] == modes
    assert all(parameter.grad is None for parameter in split.parameters())


def _modules(split: SplitModel) -> list[nn.Module]:
    return [*split.client.modules(), *split.server.modules()]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {name: state[name] for name in list(state)[1:]},
        lambda state: state | {"extra": torch.zeros(1)},
        lambda state: state | {"0.bias": torch.zeros(3)},
    ],
)
def test_arrays_of_another_model_are_refused(
    make_strategy: Make,
    split: SplitModel,
    clients: dict[int, SplitClient],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    initial = ArrayRecord(change(split.state_dict()))
    with pytest.raises(ConfigError, match=r"missing keys .* unexpected keys .* wrong shapes"):
        run_in_process(make_strategy(), clients, initial)


def test_central_evaluation_gets_the_whole_model_before_and_after_each_round(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    seen: list[tuple[int, list[str], float]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        state = arrays.to_torch_state_dict()
        seen.append((server_round, list(state), float(state["0.weight"].sum())))
        return MetricRecord({"accuracy": 0.5}) if server_round != 1 else None

    result = run_in_process(make_strategy(), clients, arrays, num_rounds=2, evaluate_fn=evaluate)
    assert [server_round for server_round, _, _ in seen] == [0, 1, 2]
    assert all(keys == list(arrays) for _, keys, _ in seen)
    assert len({total for _, _, total in seen}) == 3
    assert result.evaluate_metrics_serverapp == {
        0: MetricRecord({"accuracy": 0.5}),
        2: MetricRecord({"accuracy": 0.5}),
    }


def test_settings_are_logged(make_strategy: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr.psl"):
        make_strategy(seed=41, max_grad_norm=2.5).summary()
    for text in ("GlobalSampler", "max_grad_norm: 2.5", "cut: '1', seed: 41, device: cpu"):
        assert text in caplog.text


def test_records_name_the_sampler(make_strategy: Make) -> None:
    assert make_strategy().sampler_name == "GPSL"


def test_a_description_is_asked_for_first(
    make_strategy: Make, arrays: ArrayRecord, fake_grid: "type[FakeGrid]"
) -> None:
    def stranger(message: Message) -> Message:
        reply = DescribeReply(client_key=0, num_examples=1, num_test_examples=0, segment={})
        return Message(records.encode_description(reply), reply_to=message)

    grid = fake_grid({7: stranger})
    with pytest.raises(PslError, match="node 7: its client segment is not the server's"):
        make_strategy(min_available_nodes=1, transport="messages").start(grid, arrays)
    assert [message.metadata.message_type for message in grid.pushed] == ["query.psl_describe"]
    assert list(grid.pushed[0].content) == list(RecordDict())
