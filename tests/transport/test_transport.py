from typing import TYPE_CHECKING

from flower_psl.transport import InProcessTransport, Transport
from flower_psl.transport.flower_messages import FlowerMessageTransport
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest

if TYPE_CHECKING:
    from tests.conftest import FakeGrid


class Idle:
    def describe(self) -> DescribeReply:
        raise NotImplementedError

    def prepare(self, step: StepId) -> None: ...

    def handle(self, request: StepRequest) -> StepReply:
        raise NotImplementedError


def test_transports_have_names_for_a_runs_records(fake_grid: "type[FakeGrid]") -> None:
    # The annotation lets the type checker hold both to the protocol.
    transports: list[Transport] = [
        InProcessTransport({0: Idle()}),
        FlowerMessageTransport(fake_grid({})),
    ]
    assert [transport.name for transport in transports] == ["in-process", "messages"]


def test_nothing_to_exchange_is_no_exchange(fake_grid: "type[FakeGrid]") -> None:
    grid = fake_grid({})
    assert FlowerMessageTransport(grid).exchange({}, timeout_s=1).all() == {}
    assert InProcessTransport({0: Idle()}).exchange({}, timeout_s=1).all() == {}
    assert grid.pulls == []
