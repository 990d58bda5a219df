from collections.abc import Mapping

import pytest

from flower_psl.errors import ClientError
from flower_psl.server.checkpoints.device_states import DeviceStates
from flower_psl.server.ledger import Ledger
from flower_psl.storage import Version
from flower_psl.transport import Answers, InProcessTransport
from flower_psl.wire import Phase, StepReply, StepRequest


class Recording(InProcessTransport):
    """Answers what it is asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[Mapping[int, StepRequest]] = []
        self.failing: set[int] = set()

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        self.asked.append(requests)
        return Answers(
            {node: StepReply(phase=r.phase, id=r.id) for node, r in requests.items()},
            {
                node: ClientError(f"node {node}: disk full")
                for node in requests
                if node in self.failing
            },
        )


class Stepper:
    apart = (0, 3, 5)


def states(transport: Recording, ledger: Ledger) -> DeviceStates:
    nodes = {0: 100, 2: 102, 3: 103, 5: 105}
    return DeviceStates(transport, nodes, Stepper(), ledger, seed=4, timeout_s=1.0)


def test_devices_with_a_segment_that_are_there_are_asked() -> None:
    transport = Recording()
    devices = states(transport, Ledger(out={3: "late"}))
    devices.save_devices("3f9", Version(2, 7), Version(1, 5))
    devices.restore_devices("3f9", Version(2, 7))
    save, restore = transport.asked
    assert list(save) == list(restore) == [100, 105]
    request = save[105]
    assert (request.phase, request.run) == (Phase.SAVE, "3f9")
    assert request.id == (4, 2, 0, 7, 5, 0, 0)
    assert request.previous == (4, 1, 0, 5, 5, 0, 0)
    assert (restore[100].phase, restore[100].previous) == (Phase.RESTORE, None)


def test_one_that_cannot_is_named() -> None:
    transport = Recording()
    transport.failing.add(105)
    with pytest.raises(ClientError, match="node 105: disk full"):
        states(transport, Ledger()).save_devices("3f9", Version(2, 7), Version(1, 5))


def test_nobody_is_asked_if_nobody_has_a_segment() -> None:
    transport = Recording()
    devices = DeviceStates(
        transport, {}, type("None_", (), {"apart": ()})(), Ledger(), seed=0, timeout_s=1.0
    )
    devices.save_devices("3f9", Version(1, 0), Version(1, 0))
    assert transport.asked == []
