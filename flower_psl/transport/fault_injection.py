"""A transport that fails as networks and devices do, by a seeded script."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from flower_psl.errors import ClientError, ProtocolError, PslError
from flower_psl.transport.answers import Answers, belonging
from flower_psl.transport.corruptions import Corruption, corrupted
from flower_psl.transport.fault_script import Fault, FaultScript, Injection
from flower_psl.transport.polling import late
from flower_psl.transport.transport import Transport
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest

T = TypeVar("T")

_BY_SCRIPT = "a fault that was injected"
# The share of killed processes that do not even begin to answer.
_BEFORE_IT_ANSWERED = 0.5


class _Incident(NamedTuple):
    fault: Fault
    draws: np.random.Generator
    corruption: Corruption | None


class FaultInjectionTransport:
    """Wraps a transport, and lets its exchanges fail as a script says.

    It shows what a run makes of failures, without processes to kill or times to wait for. Time
    passes with each call of `nodes`, `describe` and `exchange`; a node that is late or was
    killed cannot be reached until a number of calls later, and is not among `nodes` meanwhile.
    Who is asked all the same is late again, or lost.

    Parameters
    ----------
    transport : Transport
        What carries what gets through.
    script : FaultScript
        What happens, and when.
    forget : callable, optional
        Called with a node that was killed; it makes what is behind that node forget all that
        a process holds.

    Attributes
    ----------
    injected : list of Injection
        What has happened so far, in order.
    """

    def __init__(
        self,
        transport: Transport,
        script: FaultScript,
        forget: Callable[[int], object] | None = None,
    ) -> None:
        self.injected: list[Injection] = []
        self._inner = transport
        self._script = script
        self._forget = forget
        self._call = 0
        # By node: the call at which it is back, and whether it is lost meanwhile, or late.
        self._away: dict[int, tuple[int, bool]] = {}
        self._delayed: dict[int, StepRequest] = {}

    @property
    def name(self) -> str:
        """The name of the transport that is wrapped."""
        return self._inner.name

    @property
    def refused(self) -> Mapping[str, int]:
        """What that one refused."""
        return self._inner.refused

    def nodes(self) -> list[int]:
        """Return the nodes that can be reached now."""
        self._pass_time()
        return [node for node in self._inner.nodes() if node not in self._away]

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        """Ask nodes for their descriptions. These can get lost, but not wrong."""
        where = {node: f"node {node}, describing itself" for node in nodes}
        incidents = self._begin(where, exempt=Fault.CORRUPT)

        def ask(asked: Iterable[int]) -> Answers[DescribeReply]:
            return self._inner.describe(asked, timeout_s)

        outcomes = self._converse(where, incidents, ask, timeout_s)
        return Answers.of(where, outcomes)

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        """Send requests, and lose, double, change and delay what the script says."""
        where = {node: f"node {node}, {request.id}" for node, request in requests.items()}
        incidents = self._begin(requests)

        def ask(asked: Iterable[int]) -> Answers[StepReply]:
            return self._inner.exchange({node: requests[node] for node in asked}, timeout_s)

        outcomes = self._converse(where, incidents, ask, timeout_s)
        for node, (fault, draws, corruption) in incidents.items():
            if fault is Fault.DELAY:
                self._delayed[node] = requests[node]
            elif corruption is not None:
                outcomes[node] = _corrupted(outcomes[node], corruption, draws)
        return belonging(Answers.of(requests, outcomes), requests)

    def announce(self, steps: Mapping[int, StepId]) -> None:
        """Tell those who can be reached."""
        self._inner.announce({n: step for n, step in steps.items() if n not in self._away})

    def _pass_time(self) -> None:
        """Let those come back whose time it is, and answer what they get too late."""
        self._call += 1
        for node in [node for node, (back, _) in self._away.items() if back <= self._call]:
            del self._away[node]
            if (request := self._delayed.pop(node, None)) is not None:
                self._inner.exchange({node: request}, timeout_s=0.0)

    def _begin(self, nodes: Iterable[int], exempt: Fault | None = None) -> dict[int, _Incident]:
        """Let time pass, and return what happens to those who can be reached."""
        self._pass_time()
        incidents = {}
        for node in nodes:
            draws = self._script.draws(self._call, node)
            fault = self._script.fault(self._call, draws)
            if fault is None or fault is exempt or node in self._away:
                continue
            corruption = self._script.corruption(draws) if fault is Fault.CORRUPT else None
            incidents[node] = _Incident(fault, draws, corruption)
            self.injected.append(Injection(self._call, node, fault, corruption))
        return incidents

    def _converse(
        self,
        where: Mapping[int, str],
        incidents: Mapping[int, _Incident],
        ask: Callable[[Iterable[int]], Answers[T]],
        timeout_s: float,
    ) -> dict[int, T | PslError]:
        """Ask nodes, but for those whom a request does not reach, and lose replies."""
        outcomes: dict[int, T | PslError] = {}
        for node in where:
            failure = self._on_the_way(node, where[node], incidents.get(node), timeout_s)
            if failure is not None:
                outcomes[node] = failure
        order = [node for node in where if node not in outcomes]
        for fault, draws, _ in incidents.values():
            if fault is Fault.REORDER:
                order = [order[place] for place in draws.permutation(len(order))]
        twice = [n for n in order if n in incidents and incidents[n].fault is Fault.DUPLICATE]
        for asked in (order, twice):
            answers = ask(asked) if asked else Answers[T]({}, {})
            outcomes |= {**answers.replies, **answers.failures}
        for node, incident in incidents.items():
            if node in order and incident.fault in (Fault.LOSE, Fault.KILL):
                outcomes[node] = self._leave(node, where[node], incident, timeout_s)
        return outcomes

    def _on_the_way(
        self, node: int, where: str, incident: _Incident | None, timeout_s: float
    ) -> PslError | None:
        """Return why a request does not reach a node, if it does not."""
        if node in self._away:
            _, is_lost = self._away[node]
            return _lost(where) if is_lost else late(where, timeout_s)
        match incident:
            case _Incident(fault=Fault.DROP | Fault.DELAY):
                return self._leave(node, where, incident, timeout_s)
            case _Incident(Fault.KILL, draws) if draws.random() < _BEFORE_IT_ANSWERED:
                return self._leave(node, where, incident, timeout_s)
            case _Incident(fault=Fault.RAISE):
                return ClientError(f"{where}: the client raised RuntimeError: {_BY_SCRIPT}")
        return None

    def _leave(self, node: int, where: str, incident: _Incident, timeout_s: float) -> PslError:
        """Let a node be away, and return what is seen of that."""
        is_lost = incident.fault is Fault.KILL
        self._away[node] = (self._call + self._script.absence(incident.draws), is_lost)
        if is_lost and self._forget is not None:
            self._forget(node)
        return _lost(where) if is_lost else late(where, timeout_s)


def _corrupted(
    outcome: StepReply | PslError, corruption: Corruption, draws: np.random.Generator
) -> StepReply | PslError:
    if isinstance(outcome, PslError):
        return outcome
    try:
        return corrupted(outcome, corruption, draws)
    except ProtocolError as error:
        return error


def _lost(where: str) -> ClientError:
    return ClientError(f"{where}: its connection broke and did not come back: {_BY_SCRIPT}")
