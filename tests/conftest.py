"""What tests of several rooms share: torch alike in every test, and Flower without a run."""

import logging
from collections.abc import Callable, Iterable

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message], Message | None]

# gRPC wakes every event loop of a process for each event, and asyncio logs the error of those that
# come too late to read it. Only in tests have the server and a device loops in one process.
logging.getLogger("asyncio").addFilter(lambda line: "PollerCompletion" not in line.getMessage())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, so that none of them is what the others wait for at the end.

    Each process is given two at its start. Behind the longest is one of the shortest.
    """
    items.sort(key=_minutes, reverse=True)
    if len(items) > 2:
        items.insert(1, items.pop())


def _minutes(item: pytest.Item) -> float:
    slow = item.get_closest_marker("slow")
    return 0.0 if slow is None else float(slow.kwargs.get("minutes", 1))


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    """One thread, and neither draws nor log lines that depend on which tests ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.getLogger("flwr").setLevel(logging.INFO)
    logging.getLogger("flwr.psl").setLevel(logging.NOTSET)


@pytest.fixture
def flower_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be built: Flower tells them the run they belong to."""
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


class FakeGrid(Grid):
    """A grid whose nodes are functions; replies come when `pull` lets them.

    Parameters
    ----------
    nodes : dict of int to callable
        Makes the reply of a node to a message; None never comes.
    """

    def __init__(self, nodes: dict[int, Answer]) -> None:
        self.nodes = nodes
        self.pushed: list[Message] = []
        self.pulls: list[list[str]] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        # It sleeps three seconds between polls.
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"message-{len(self.pushed)}")
            # A SuperLink writes the id into the message that the client gets.
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.pushed.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        self.pulls.append(ids)
        return self.pull(
            [message for message in self.pushed if message.metadata.message_id in ids]
        )

    def pull(self, asked: list[Message]) -> list[Message]:
        """Return the replies to what was asked for, in the order of the requests."""
        replies = [self.nodes[message.metadata.dst_node_id](message) for message in asked]
        return [reply for reply in replies if reply is not None]


@pytest.fixture
def fake_grid(flower_run: None) -> type[FakeGrid]:
    return FakeGrid


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()
