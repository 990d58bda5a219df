"""How much memory is shared, with how many nodes."""

import os

import pytest

from flower_psl.transport import memory_offers, shared_memory
from flower_psl.transport.memory_offers import offer_memory
from flower_psl.transport.stream_connection import Node

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory that is shared in this way"
)
LARGE = 10**9


def offered_bytes(node: Node, nodes: list[Node], max_frame_bytes: int = LARGE) -> int:
    """Let a node have what it is offered, and return how much that is."""
    node.offer = offer_memory(node, nodes, max_frame_bytes)
    return 0 if node.offer is None else node.offer.memory.capacity_bytes


def nodes(number: int) -> list[Node]:
    return [Node("token") for _ in range(number)]


def test_a_node_gets_its_share_up_to_a_limit() -> None:
    for number, expected in ((1, 2**26), (8, 2**26), (9, 2**29 // 9), (1000, 2**29 // 1000)):
        all_of_them = nodes(number)
        assert offered_bytes(all_of_them[0], all_of_them) == expected


def test_all_together_never_share_more_than_there_is() -> None:
    """However many join later: by then what there is may be taken."""
    some = nodes(8)
    assert [offered_bytes(node, some) for node in some] == 8 * [2**26]
    more = [*some, Node("token")]
    assert offered_bytes(more[-1], more) == 0
    some[0].take_offer(is_open=True)
    assert offered_bytes(more[-1], more) == 0
    some[0].go()
    some[1].take_offer(is_open=False)
    assert offered_bytes(more[-1], more) == 2**29 // 9


@pytest.mark.parametrize(
    ("max_frame_bytes", "expected"), [(1_000_036 + 16_383, 0), (1_000_036 + 16_384, 16_384)]
)
def test_what_is_shared_could_go_with_its_frame(max_frame_bytes: int, expected: int) -> None:
    node = Node("token")
    assert offered_bytes(node, [node], max_frame_bytes) == expected


def test_offers_that_nobody_answers_are_few() -> None:
    many = nodes(memory_offers.MOST_UNANSWERED + 1)
    *first, last = (offered_bytes(node, many) for node in many)
    assert min(first) > 0
    assert last == 0
    many[0].take_offer(is_open=False)
    assert offered_bytes(many[-1], many) > 0


def test_a_node_that_comes_without_end_is_served_without() -> None:
    node = Node("token")
    for _ in range(memory_offers.MOST_A_NODE):
        assert offered_bytes(node, [node])
        node.go()
    assert offered_bytes(node, [node]) == 0


def test_no_memory_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_has_such_memory", lambda: False)
    node = Node("token")
    assert offer_memory(node, [node], LARGE) is None
