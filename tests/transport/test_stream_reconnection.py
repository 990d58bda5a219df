"""Connections that break in mid-step and are taken up again."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import TensorDataset

from flower_psl import (
    ClientError,
    FailurePolicy,
    GlobalSampler,
    ParallelSplitLearning,
    SplitClient,
    cut,
    run_in_process,
)
from flower_psl.client.client_cache import ClientCache
from flower_psl.client.stream_session import KeyedClient
from flower_psl.transport import shared_memory, stream_server
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest, parts

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, MakeLab

KEYS = (2, 5, 9)


def build_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))


def make_clients() -> dict[int, SplitClient]:
    draws = torch.Generator().manual_seed(1)
    data = {
        key: TensorDataset(
            torch.randn(12, 6, generator=draws), torch.randint(3, (12,), generator=draws)
        )
        for key in KEYS
    }
    return {key: SplitClient(cut(build_model(), at="2").client, data[key]) for key in KEYS}


def make_strategy(*, overlap: bool) -> ParallelSplitLearning:
    def optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=0.1, momentum=0.9)

    return ParallelSplitLearning(
        cut(build_model(), at="2"),
        GlobalSampler(batch_size=9, seed=0),
        functional.cross_entropy,
        optimizer,
        overlap=overlap,
        failures=FailurePolicy(step_timeout_s=20),
    )


class Cutter:
    """A client whose connection breaks when it has computed some of its answers."""

    def __init__(self, client: KeyedClient, cut_off: Callable[[], object], at: set[int]) -> None:
        self._client = client
        self._cut_off = cut_off
        self._at = at
        self.replies: list[StepReply] = []

    def describe(self) -> DescribeReply:
        return self._client.describe()

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        reply = self._client.handle(request)
        self.replies.append(reply)
        if len(self.replies) in self._at:
            self._cut_off()
        return reply


def state(arrays: ArrayRecord) -> dict[str, Tensor]:
    return dict(arrays.to_torch_state_dict())


@pytest.mark.parametrize("way", ["frames", "memory", "pipes"])
@pytest.mark.parametrize("overlap", [False, True], ids=["whole", "overlap"])
def test_ten_broken_connections_change_no_bit(
    make_lab: "MakeLab", overlap: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = way != "frames"
    if memory:
        monkeypatch.setattr(shared_memory, "LEAST_BYTES", 1)
    if way == "memory":
        monkeypatch.setattr(stream_server, "_MOST_WITH_PIPES", 0)
    arrays = ArrayRecord(build_model().state_dict())
    strategy = make_strategy(overlap=overlap)
    undisturbed = run_in_process(strategy, make_clients(), arrays, num_rounds=3)

    lab = make_lab(*KEYS, max_frame_bytes=3 * 10**6, shared_memory=memory)
    proxy = lab.proxy()
    moments = {2: {1, 4, 7, 11}, 5: {2, 9, 10}, 9: {3, 8, 13}}
    cutters = {
        key: Cutter(KeyedClient(client, key, ClientCache()), proxy.drop, moments[key])
        for key, client in make_clients().items()
    }
    for key, cutter in cutters.items():
        lab.serve({key: cutter}, port=proxy.port)
    result = strategy.run_over(
        lab.transport, arrays, num_rounds=3, timeout=60, evaluate_fn=None, min_nodes=len(KEYS)
    )
    while memory and len(lab.transport._memories) < len(KEYS):
        assert lab.transport.await_node(20)  # no step waits for a node that had answered
    assert sorted(lab.transport._memories) == (list(KEYS) if memory else [])
    expected, got = state(undisturbed.arrays), state(result.arrays)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert result.train_metrics_clientapp == undisturbed.train_metrics_clientapp
    for key, cutter in cutters.items():
        assert len(cutter.replies) >= max(moments[key])  # so that it was cut off as often
        repeated = repeated_alike(cutter.replies)  # asserts that the answers are the same
        if way != "pipes":
            assert repeated >= len(moments[key])


def repeated_alike(replies: list[StepReply]) -> int:
    """Return how often a request was repeated; each time the answer must be the same."""
    first: dict[tuple[Phase, StepId], StepReply] = {}
    for reply in replies:
        earlier = first.setdefault((reply.phase, reply.id), reply)
        tensors, again = parts.reply_tensors(earlier), parts.reply_tensors(reply)
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    return len(replies) - len(first)


def test_a_request_sent_while_a_node_was_away_reaches_it(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1)
    proxy = lab.proxy()
    lab.serve({1: make_echo(1)}, port=proxy.port)
    for _ in range(5):
        proxy.drop()
        assert lab.exchange(1) == {1: 1.0}
    assert lab.transport.nodes() == [1]


def test_all_devices_of_a_connection_come_back(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, 3, shared_memory=False)  # what is in a pipe is not lost
    proxy = lab.proxy()
    asked: Counter[int] = Counter()

    def drop_once(request: StepRequest) -> None:
        asked[request.id.client_key] += 1
        if asked.total() == 2:
            proxy.drop()

    serving = lab.serve({n: make_echo(n, during=drop_once) for n in (1, 2, 3)}, port=proxy.port)
    assert lab.exchange(1, 2, 3) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert asked.total() > 3  # what was lost on the wire was asked again
    lab.server.goodbye()
    assert serving.answered() == asked.total()


def test_a_client_waits_until_the_server_notices_its_old_connection_to_be_dead(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, shared_memory=False)  # pipes would tell it
    proxy = lab.proxy()
    refused = threading.Event()
    count = Counter[str].__setitem__

    class Refusals(Counter[str]):
        def __setitem__(self, reason: str, number: int) -> None:
            count(self, reason, number)
            if number == 2:
                refused.set()

    lab.server.refused = Refusals()
    lab.serve({1: make_echo(1)}, port=proxy.port)
    server_ends = proxy.drop(far=False)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.exchange, 1)
        assert refused.wait(20)
        for end in server_ends:
            end.close()
        assert exchange.result(20) == {1: 1.0}
    assert set(lab.server.refused) == {"second connection of a node"}


def test_who_computes_for_long_has_not_lost_the_server_by_that(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the connection broke meanwhile."""
    lab = make_lab(1)
    proxy = lab.proxy()
    passed_s = 0.0

    class Clock:
        sleep = staticmethod(time.sleep)

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + passed_s

    def compute(_: StepRequest) -> None:
        nonlocal passed_s
        if not passed_s:
            passed_s = 1000.0
            proxy.drop()

    monkeypatch.setattr("flower_psl.transport.stream_client.time", Clock)
    lab.serve({1: make_echo(1, during=compute)}, port=proxy.port)
    assert lab.exchange(1) == {1: 1.0}


def test_a_node_whose_connection_died_without_a_word_is_let_in_again_in_time(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    """Pings find out, although nothing else tells the server."""
    lab = make_lab(1, reconnect_timeout_s=4.0, shared_memory=False)  # pipes would tell at once
    proxy = lab.proxy()
    lab.serve({1: make_echo(1)}, port=proxy.port)
    server_ends = proxy.drop(far=False)
    assert lab.exchange(1) == {1: 1.0}
    for end in server_ends:
        end.close()


def test_a_node_that_does_not_come_back_in_time_ends_the_step(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    # What is in a pipe when the connection breaks is not lost.
    lab = make_lab(1, 2, reconnect_timeout_s=0.3, shared_memory=False)
    proxy = lab.proxy()
    serving = lab.serve({1: make_echo(1, during=lambda _: proxy.close())}, port=proxy.port)
    lab.serve({2: make_echo(2)})
    with pytest.raises(ClientError, match=r"node 1, client 1, round 2, step 40: its connection"):
        lab.exchange(1, 2)
    assert isinstance(serving.error(), ConnectionError)
    assert lab.exchange(2) == {2: 2.0}
