from collections.abc import Iterable
from typing import Any

import pytest
import torch

from flower_psl import ClientError, ProtocolError, WaitError
from flower_psl.transport import InProcessTransport, Transport
from flower_psl.transport.corruptions import Corruption
from flower_psl.transport.fault_injection import FaultInjectionTransport
from flower_psl.transport.fault_script import Fault, FaultScript, Injection
from flower_psl.wire import DescribeReply, Phase, StepId, StepReply, StepRequest


class Counting:
    """A device whose answers say how many requests it has had."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.described = 0
        self.prepared: list[StepId] = []

    def describe(self) -> DescribeReply:
        self.described += 1
        return DescribeReply(client_key=None, num_examples=4, num_test_examples=0, segment={})

    def prepare(self, step: StepId) -> None:
        self.prepared.append(step)

    def handle(self, request: StepRequest) -> StepReply:
        self.asked.append(request.id.step)
        return StepReply(
            phase=request.phase,
            id=request.id,
            activations=torch.tensor([float(len(self.asked))]),
            labels=torch.tensor([0]),
        )


def requests(step: int, nodes: Iterable[int]) -> dict[int, StepRequest]:
    return {
        node: StepRequest(
            phase=Phase.FORWARD,
            id=StepId(
                seed=0, server_round=1, plan=0, step=step, client_key=node, start=0, batch_size=1
            ),
        )
        for node in nodes
    }


class Never:
    """Draws by which nothing happens."""

    def random(self) -> float:
        return 1.0


class Once(FaultScript):
    """A script for node 1, in the third call only."""

    def draws(self, call: int, node: int) -> Any:
        return super().draws(call, node) if (call, node) == (3, 1) else Never()


class Bench:
    """Three devices, and a fault of one kind that befalls the second in its third exchange."""

    def __init__(self, fault: Fault, **values: Any) -> None:
        script = Once(seed=0, rate=1.0, faults=(fault,), longest_absence=1, **values)
        self.devices = {node: Counting() for node in (0, 1, 2)}
        self.transport = FaultInjectionTransport(InProcessTransport(self.devices), script)
        self.take(1)
        self.take(2)

    def take(self, step: int) -> dict[int, float | Exception]:
        answers = self.transport.exchange(requests(step, (0, 1, 2)), timeout_s=7)
        values = {
            node: reply.activations.item()
            for node, reply in answers.replies.items()
            if reply.activations is not None
        }
        return {**values, **answers.failures}


@pytest.mark.parametrize(
    ("fault", "asked", "later"),
    [
        # What node 1 was asked in the step, and what it has been asked when it is back.
        (Fault.DROP, [1, 2], [1, 2, 4]),
        (Fault.LOSE, [1, 2, 3], [1, 2, 3, 4]),
        (Fault.DELAY, [1, 2], [1, 2, 3, 4]),
    ],
)
def test_a_node_is_late(fault: Fault, asked: list[int], later: list[int]) -> None:
    bench = Bench(fault)
    taken = bench.take(3)
    assert (taken.pop(0), taken.pop(2)) == (3.0, 3.0)
    assert isinstance(taken[1], WaitError)
    assert str(taken[1]).startswith("node 1, client 1, round 1, step 3: no reply within 7 s.")
    assert bench.devices[1].asked == asked
    assert bench.take(4)[1] == float(len(later))
    assert bench.devices[1].asked == later
    assert bench.transport.injected == [Injection(3, 1, fault)]


def test_a_request_comes_twice_and_the_second_answer_counts() -> None:
    bench = Bench(Fault.DUPLICATE)
    assert bench.take(3) == {0: 3.0, 1: 4.0, 2: 3.0}
    assert bench.devices[1].asked == [1, 2, 3, 3]


def test_requests_come_in_another_order_and_answers_in_their_own() -> None:
    order: list[int] = []

    class Noting(Counting):
        def __init__(self, node: int) -> None:
            super().__init__()
            self.node = node

        def handle(self, request: StepRequest) -> StepReply:
            order.append(self.node)
            return super().handle(request)

    nodes = tuple(range(8))
    inner = InProcessTransport({node: Noting(node) for node in nodes})
    script = FaultScript(seed=0, rate=1.0, faults=(Fault.REORDER,))
    answers = FaultInjectionTransport(inner, script).exchange(requests(1, nodes), timeout_s=1)
    assert sorted(order) == list(nodes)
    assert order != list(nodes)
    assert list(answers.replies) == list(nodes)


def test_a_reply_is_changed() -> None:
    bench = Bench(Fault.CORRUPT, corruptions=(Corruption.SIGN,))
    assert bench.take(3) == {0: 3.0, 1: -3.0, 2: 3.0}
    assert bench.transport.injected == [Injection(3, 1, Fault.CORRUPT, Corruption.SIGN)]


def test_a_reply_to_another_step_is_a_failure() -> None:
    bench = Bench(Fault.CORRUPT, corruptions=(Corruption.STEP,))
    failure = bench.take(3)[1]
    assert isinstance(failure, ProtocolError)
    assert "client 1, round 1, step 3: asked for forward" in str(failure)


def test_a_node_says_that_it_failed_and_stays() -> None:
    bench = Bench(Fault.RAISE)
    failure = bench.take(3)[1]
    assert isinstance(failure, ClientError)
    assert str(failure) == (
        "node 1, client 1, round 1, step 3: the client raised RuntimeError: a fault that was "
        "injected"
    )
    assert bench.devices[1].asked == [1, 2]
    assert bench.transport.nodes() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_node_forgets_and_comes_back(seed: int) -> None:
    devices = {node: Counting() for node in (0, 1)}
    forgot: list[int] = []
    script = FaultScript(seed=seed, rate=1.0, faults=(Fault.KILL,), longest_absence=3)
    transport = FaultInjectionTransport(InProcessTransport(devices), script, forgot.append)
    answers = transport.exchange(requests(1, (0, 1)), timeout_s=1)
    assert answers.replies == {}
    for failure in answers.failures.values():
        assert isinstance(failure, ClientError)
        assert "step 1: its connection broke and did not come back" in str(failure)
    assert sorted(forgot) == [0, 1]
    assert len(devices[0].asked) <= 1
    away = [transport.nodes() for _ in range(3)]
    assert away[-1] == [0, 1]


def test_who_is_away_cannot_be_reached() -> None:
    device = Counting()
    script = FaultScript(seed=1, rate=1.0, faults=(Fault.KILL,), longest_absence=50)
    transport = FaultInjectionTransport(InProcessTransport({1: device}), script)
    transport.exchange(requests(1, (1,)), timeout_s=1)
    asked = list(device.asked)
    assert transport.nodes() == []
    step = requests(2, (1,))[1].id
    transport.announce({1: step})
    assert device.prepared == []
    for answers in (
        transport.exchange(requests(2, (1,)), timeout_s=1),
        transport.describe([1], timeout_s=1),
    ):
        assert isinstance(answers.failures[1], ClientError)
    assert (device.asked, device.described) == (asked, 0)
    assert len(transport.injected) == 1


def test_descriptions_get_lost_but_not_wrong() -> None:
    device = Counting()
    inner = InProcessTransport({1: device})
    dropping = FaultScript(seed=0, rate=1.0, faults=(Fault.DROP,))
    answers = FaultInjectionTransport(inner, dropping).describe([1], timeout_s=2)
    assert isinstance(answers.failures[1], WaitError)
    assert str(answers.failures[1]).startswith("node 1, describing itself: no reply within 2 s")
    changing = FaultScript(seed=0, rate=1.0, faults=(Fault.CORRUPT,))
    transport = FaultInjectionTransport(inner, changing)
    assert transport.describe([1], timeout_s=2).all()[1].client_key == 1
    assert transport.injected == []


def test_the_same_script_does_the_same_again() -> None:
    def run() -> tuple[list[Injection], list[list[int]]]:
        devices = {node: Counting() for node in range(5)}
        script = FaultScript(seed=5, rate=0.4)
        transport = FaultInjectionTransport(InProcessTransport(devices), script)
        for step in range(1, 40):
            transport.exchange(requests(step, transport.nodes()), timeout_s=1)
        return transport.injected, [device.asked for device in devices.values()]

    injected, asked = run()
    assert (injected, asked) == run()
    assert {each.fault for each in injected} == set(Fault)


def test_it_is_a_transport_like_the_one_that_it_wraps() -> None:
    inner = InProcessTransport({1: Counting()})
    transport: Transport = FaultInjectionTransport(inner, FaultScript(seed=0, rate=0.0))
    assert (transport.name, transport.refused) == ("in-process", {})
    assert transport.nodes() == [1]
    assert transport.exchange(requests(1, (1,)), timeout_s=1).failures == {}
