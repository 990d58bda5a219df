import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from torch import nn

from flower_psl import ClientError, WaitError
from flower_psl.server.participants import Participants, gather
from flower_psl.transport import Answers, Transport
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest, TensorSpec, segment_spec

if TYPE_CHECKING:
    from tests.conftest import FakeTime

SEGMENT = nn.BatchNorm1d(3)
SPEC = segment_spec([*SEGMENT.named_parameters(), *SEGMENT.named_buffers()])


class Described:
    """Nodes of which only descriptions are known."""

    name = "described"

    def __init__(self, descriptions: Mapping[int, DescribeReply]) -> None:
        self.descriptions = descriptions
        self.timeout_s = 0.0
        self.refused: dict[str, int] = {}

    def nodes(self) -> list[int]:
        return sorted(self.descriptions)

    def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
        self.timeout_s = timeout_s
        return Answers({node: self.descriptions[node] for node in reversed(list(nodes))}, {})

    def exchange(
        self, requests: Mapping[int, StepRequest], timeout_s: float
    ) -> Answers[StepReply]:
        raise NotImplementedError

    def announce(self, steps: Mapping[int, StepId]) -> None:
        raise NotImplementedError


def reply(
    client_key: int | None,
    num_examples: int = 4,
    segment: Mapping[str, TensorSpec] = SPEC,
    num_test_examples: int = 1,
) -> DescribeReply:
    return DescribeReply(
        client_key=client_key,
        num_examples=num_examples,
        num_test_examples=num_test_examples,
        segment=segment,
    )


def meet(descriptions: Mapping[int, DescribeReply], min_nodes: int = 1) -> Participants:
    transport: Transport = Described(descriptions)
    return gather(
        transport, SEGMENT, min_nodes=min_nodes, node_timeout_s=0.0, describe_timeout_s=7.0
    )


def test_clients_are_in_the_order_of_their_keys() -> None:
    found = meet({100: reply(9, 3), 200: reply(2, 5), 300: reply(4, 1, num_test_examples=8)})
    assert list(found.nodes.items()) == [(2, 200), (4, 300), (9, 100)]
    assert list(found.num_examples.items()) == [(2, 5), (4, 1), (9, 3)]
    assert list(found.num_test_examples.items()) == [(2, 1), (4, 8), (9, 1)]


def test_descriptions_have_a_bound_of_their_own() -> None:
    transport = Described({1: reply(0)})
    gather(transport, SEGMENT, min_nodes=1, node_timeout_s=0.0, describe_timeout_s=7.0)
    assert transport.timeout_s == 7.0


def test_a_device_that_trains_needs_an_optimizer_if_it_is_to_do_so_by_itself() -> None:
    able = replace(reply(1), has_optimizer=True)
    found = {100: able, 200: reply(2), 300: reply(3, 0)}

    def meet_them(descriptions: Mapping[int, DescribeReply]) -> Participants:
        return gather(
            Described(descriptions),
            SEGMENT,
            min_nodes=1,
            node_timeout_s=0.0,
            describe_timeout_s=7.0,
            need_optimizers=True,
        )

    with pytest.raises(
        ClientError, match=r"node 200: its SplitClient has no optimizer_fn; .*Make"
    ):
        meet_them(found)
    # One without training data never trains.
    assert list(meet_them({100: able, 300: found[300]}).nodes) == [1, 3]


def test_two_nodes_with_one_key_are_refused() -> None:
    with pytest.raises(ClientError, match=r"nodes 300 and 100 both have the client key 2; .*Give"):
        meet({100: reply(2), 200: reply(1), 300: reply(2)})


def test_without_a_key_the_node_ids_give_the_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        found = meet({300: reply(0, 3), 100: reply(7, 1), 200: reply(None, 2)})
    assert list(found.nodes.items()) == [(0, 100), (1, 200), (2, 300)]
    assert found.num_examples == {0: 1, 1: 2, 2: 3}
    [record] = caplog.records
    assert "node 200 has no client key (partition-id or client-key" in record.getMessage()
    assert "cannot be repeated bit for bit" in record.getMessage()


def test_keys_need_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    meet({100: reply(0), 200: reply(1)})
    assert caplog.records == []


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        (
            {**SPEC, "weight": TensorSpec((4,), "float32", True)},
            r"weight is float32 \(4,\) on the",
        ),
        ({**SPEC, "extra": TensorSpec((), "int64", False)}, "extra exists on the device only"),
        ({name: SPEC[name] for name in SPEC if name != "bias"}, "bias is missing on the device"),
        ({**SPEC, "bias": TensorSpec((3,), "float32", False)}, r"bias is .*, not trained on the"),
    ],
)
def test_another_segment_is_refused(segment: Mapping[str, TensorSpec], text: str) -> None:
    with pytest.raises(ClientError, match=f"node 200: its .* not the server's: {text}.*Build"):
        meet({100: reply(0), 200: reply(1, segment=segment)})


@pytest.mark.parametrize(("extra", "more"), [(5, ""), (6, "; and 1 more"), (9, "; and 4 more")])
def test_many_differences_are_counted(extra: int, more: str) -> None:
    segment = SPEC | {f"x{i}": TensorSpec((), "int64", False) for i in range(extra)}
    with pytest.raises(ClientError, match=f"x4 exists on the device only{more}. Build"):
        meet({100: reply(0, segment=segment)})


def test_clients_without_data_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        found = meet({100: reply(0, 0), 200: reply(1, 5), 300: reply(2, 0)})
    assert found.num_examples == {0: 0, 1: 5, 2: 0}
    assert "clients [0, 2] have no training data" in caplog.text


def test_no_data_at_all_is_refused() -> None:
    with pytest.raises(
        ClientError, match="none of the 2 clients has training data; give at least"
    ):
        meet({100: reply(0, 0), 200: reply(1, 0)})


def test_too_few_nodes_are_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch, fake_time: "FakeTime"
) -> None:
    monkeypatch.setattr("flower_psl.transport.polling.time", fake_time)
    with pytest.raises(WaitError, match=r"1 nodes after 0 s; min_available_nodes is 2\."):
        meet({100: reply(0)}, min_nodes=2)
    assert fake_time.slept_s == []


def test_who_does_not_describe_itself_is_left_out_if_others_suffice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Some(Described):
        def describe(self, nodes: Iterable[int], timeout_s: float) -> Answers[DescribeReply]:
            answers = super().describe(nodes, timeout_s)
            failure = WaitError("node 200, describing itself: no reply")
            return Answers({n: r for n, r in answers.replies.items() if n != 200}, {200: failure})

    def gathered(min_nodes: int) -> Participants:
        transport = Some({100: reply(0), 200: reply(1), 300: reply(2)})
        return gather(
            transport, SEGMENT, min_nodes=min_nodes, node_timeout_s=0.0, describe_timeout_s=1.0
        )

    with caplog.at_level(logging.WARNING, "flwr.psl"):
        assert list(gathered(min_nodes=2).nodes) == [0, 2]
    assert "left out of the run: node 200, describing itself: no reply" in caplog.text
    with pytest.raises(WaitError, match="node 200, describing itself: no reply"):
        gathered(min_nodes=3)
