import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from flower_psl import ClientError, ConfigError, ProtocolError, WaitError
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_connection import Request
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.wire import DescribeReply, StepId, StepReply, StepRequest, frames, parts
from flower_psl.wire.frames import Kind

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, MakeLab, Serving

FAR = 2**64 - 1  # the largest node id that there can be


def test_every_node_describes_itself(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1, 2)
    for node in (1, 2):
        lab.serve({node: make_echo(node)})
    descriptions = lab.transport.describe([2, 1], timeout_s=20).all()
    assert [(node, each.client_key) for node, each in descriptions.items()] == [(2, 2), (1, 1)]
    assert lab.transport.nodes() == [1, 2]


def test_replies_come_in_the_order_of_the_requests(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    """Whichever node answers first."""
    lab = make_lab(1, 2, FAR)
    others_answered = threading.Semaphore(0)

    def last(_: StepRequest) -> None:
        assert others_answered.acquire(timeout=20)
        assert others_answered.acquire(timeout=20)

    lab.serve({FAR: make_echo(5, during=last)})
    for node in (1, 2):
        lab.serve({node: make_echo(node, during=lambda _: others_answered.release())})
    assert list(lab.exchange(FAR, 2, 1).items()) == [(FAR, 5.0), (2, 2.0), (1, 1.0)]


def test_a_portion_is_on_its_way_before_the_next_is_made(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2)
    answers = threading.Semaphore(0)
    for node in (1, 2):
        lab.serve({node: make_echo(node, during=lambda _: answers.release())})
    requests = lab.requests(2, 1)

    def portions() -> Iterator[dict[int, StepRequest]]:
        for node, request in requests.items():
            yield {node: request}
            assert answers.acquire(timeout=20)

    replies = lab.transport.exchange_in_portions(portions(), 20, lambda _: None).all()
    assert list(replies) == [2, 1]


def test_replies_are_told_of_when_they_come(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1, 2, 3)
    told: list[int] = []
    first_told = threading.Event()

    def wait(_: StepRequest) -> None:
        assert first_told.wait(20)

    def wrong(request: StepRequest) -> StepReply:
        return StepReply(phase=request.phase, id=request.id._replace(step=9))

    def note(reply: StepReply) -> None:
        told.append(reply.id.client_key)
        first_told.set()

    lab.serve({1: make_echo(1, during=wait)})
    lab.serve({2: make_echo(2)})
    lab.serve({3: make_echo(3, during=wrong)})
    answers = lab.transport.exchange_in_portions([lab.requests(3, 1, 2)], 20, note)
    assert told == [2, 1]
    assert list(answers.replies) == [1, 2]
    assert re.match("client 3, round 2, step 40: asked for", str(answers.failures[3]))


def test_what_is_sent_arrives_bit_for_bit(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1)
    seen: list[StepRequest] = []
    lab.serve({1: make_echo(1, during=seen.append)})
    requests = lab.requests(1)
    reply = lab.transport.exchange(requests, 20).all()[1]
    assert reply.id == seen[0].id == requests[1].id
    assert torch.equal(seen[0].weights["w"], requests[1].weights["w"])
    assert reply.labels is not None
    assert reply.labels.tolist() == [0, 0, 0]


def test_one_connection_serves_several_devices_and_one_that_joins(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, 3)
    serving = lab.serve({1: make_echo(1), 2: make_echo(2)})
    assert lab.exchange(1, 2) == {1: 1.0, 2: 2.0}
    serving.client.add(3, lab.tokens[3], make_echo(3))
    lab.await_nodes([3])
    assert lab.exchange(3, 1, 2) == {3: 3.0, 1: 1.0, 2: 2.0}
    lab.server.goodbye()
    assert serving.answered() == 5
    assert serving.client.done


def test_an_error_of_a_device_does_not_shorten_the_wait_for_the_others(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 7)
    failed = threading.Event()

    def wait(_: StepRequest) -> None:
        assert failed.wait(20)

    def fail(_: StepRequest) -> None:
        failed.set()
        raise MemoryError("no more")

    lab.serve({1: make_echo(1, during=wait)})
    lab.serve({7: make_echo(7, during=fail)})
    answers = lab.transport.exchange(lab.requests(7, 1), timeout_s=20)
    assert list(answers.replies) == [1]
    assert list(answers.failures) == [7]
    assert isinstance(answers.failures[7], ClientError)
    assert str(answers.failures[7]) == (
        "node 7, client 7, round 2, step 40: the client raised MemoryError: no more"
    )
    assert lab.transport.nodes() == [1, 7]


def test_an_error_of_any_length_is_told_in_short(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    def fail(_: StepRequest) -> None:
        raise MemoryError("x" * 2_000_000 + "\x1b")

    lab = make_lab(7)
    lab.serve({7: make_echo(7, during=fail)})
    text = str(lab.transport.exchange(lab.requests(7), timeout_s=20).failures[7])
    assert "the client raised MemoryError: xxx" in text
    assert text.endswith(r"xxx\x1b")
    assert len(text) < 4100


def test_a_request_to_a_node_that_is_not_served_is_answered_by_an_error(
    make_lab: "MakeLab",
) -> None:
    client = StreamClient(make_lab(1).ticket(1))
    asked = frames.unpack(frames.pack(Kind.DESCRIBE, 5, 2, {}))
    assert (data := client._answer(asked)) is not None
    assert frames.unpack(data)[:4] == (Kind.ERROR, 5, 2, {"reason": "KeyError: 5"})


def test_a_device_that_cannot_describe_itself_is_named(make_lab: "MakeLab") -> None:
    class Mute:
        def describe(self) -> DescribeReply:
            raise OSError("no disk")

        def prepare(self, step: StepId) -> None: ...

        def handle(self, request: StepRequest) -> StepReply:
            raise NotImplementedError

    lab = make_lab(1)
    lab.serve({1: Mute()})
    with pytest.raises(ClientError, match=r"^node 1, describing itself: .* OSError: no disk$"):
        lab.transport.describe([1], timeout_s=20).all()


def test_a_device_may_run_an_event_loop_of_its_own(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up() -> str:
        return "found"

    looked_up: list[str] = []

    def load(_: object) -> None:
        looked_up.append(asyncio.run(look_up()))

    lab, echo = make_lab(7), make_echo(7, during=load)
    monkeypatch.setattr(echo, "prepare", load)
    lab.serve({7: echo})
    lab.transport.announce({7: StepId(0, 2, 0, 41, 7, 3, 3)})
    for _ in range(2):
        assert lab.exchange(7) == {7: 7.0}
    assert looked_up == ["found"] * 3


def test_a_reply_to_another_request_is_refused(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    def confuse(request: StepRequest) -> StepReply:
        return StepReply(phase=request.phase, id=request.id._replace(step=9))

    lab = make_lab(1)
    lab.serve({1: make_echo(1, during=confuse)})
    with pytest.raises(ProtocolError, match="client 1, round 2, step 40: asked for forward"):
        lab.exchange(1)


def test_an_answer_that_is_none_names_the_node(make_lab: "MakeLab") -> None:
    lab = make_lab(1)
    stream = lab.raw_node(1)

    def answer() -> None:
        sequence = stream.read().sequence
        stream.send(frames.pack(Kind.REPLY, 1, sequence, {"unused": "all"}))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ProtocolError, match=r"^node 1, client 1, round 2, step 40: unused is"):
        lab.exchange(1)
    thread.join()


def test_late_nodes_are_named_and_do_not_disturb_what_follows(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, 3)
    released = threading.Event()

    def wait(_: StepRequest) -> None:
        assert released.wait(20)

    lab.serve({1: make_echo(1)})
    for node in (2, 3):
        lab.serve({node: make_echo(node, during=wait)})
    answers = lab.transport.exchange(lab.requests(3, 2), timeout_s=0)
    assert answers.replies == {}
    assert list(answers.failures) == [3, 2]
    for node, failure in answers.failures.items():
        where = f"node {node}, client {node}, round 2, step 40"
        assert isinstance(failure, WaitError)
        assert str(failure) == (
            f"{where}: no reply within 0 s. Look at the node's log, or raise step_timeout_s if "
            "it is only slow."
        )
    assert lab.transport.nodes() == [1]
    assert lab.exchange(1) == {1: 1.0}
    released.set()
    assert lab.exchange(3, 2) == {3: 3.0, 2: 2.0}
    assert lab.transport.nodes() == [1, 2, 3]
    assert lab.transport.refused == {}


def test_a_late_node_can_be_reached_again_when_it_has_answered(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1)
    released = threading.Event()

    def wait(_: StepRequest) -> None:
        assert released.wait(20)

    lab.serve({1: make_echo(1, during=wait)})
    late = lab.transport.exchange(lab.requests(1), timeout_s=0)
    assert list(late.failures) == [1]
    assert lab.transport.nodes() == []
    released.set()
    lab.await_nodes([1])  # nothing else is asked
    assert lab.exchange(1) == {1: 1.0}


def test_what_nobody_waits_for_any_more_is_not_asked_again(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1)
    stream = lab.raw_node(1)
    late = lab.transport.exchange(lab.requests(1), timeout_s=0)
    assert list(late.failures) == [1]
    stream.close()
    seen: list[StepRequest] = []
    lab.start({1: make_echo(1, during=seen.append)})
    lab.await_nodes([1])  # that it came back makes up for what it did not answer
    assert lab.exchange(1) == {1: 1.0}
    assert len(seen) == 1


def test_an_answer_to_an_earlier_exchange_is_left_out_of_the_next(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(2)
    stream = lab.raw_node(2)
    # As if the time had been over at the moment in which the answer came.
    lab.server.send({2: Request(99, frames.pack(Kind.DESCRIBE, 2, 99, {}))})
    stream.send(frames.pack(Kind.ERROR, 2, stream.read().sequence, {"reason": "slow"}))
    with ThreadPoolExecutor(1) as pool:
        describing = pool.submit(lab.transport.describe, [2], 20)
        values = parts.description_config(make_echo(2).describe())
        stream.send(frames.pack(Kind.DESCRIPTION, 2, stream.read().sequence, values))
        assert describing.result(20).all()[2].client_key == 2


def test_a_node_that_was_lost_is_named(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1, 2, reconnect_timeout_s=0.3)
    lab.serve({1: make_echo(1)})
    lab.raw_node(2).close()
    reason = (
        "node 2, client 2, round 2, step 40: its connection broke and did not come back within "
        "0.3 s. Look at the node's log, or raise reconnect_timeout_s"
    )
    answers = lab.transport.exchange(lab.requests(1, 2), timeout_s=20)
    assert list(answers.replies) == [1]
    assert isinstance(answers.failures[2], ClientError)
    assert str(answers.failures[2]).startswith(reason)
    assert lab.transport.nodes() == [1]
    answers = lab.transport.exchange(lab.requests(2), timeout_s=0)
    assert str(answers.failures[2]).startswith(reason)  # at once: it is known to be lost
    seen: list[StepRequest] = []
    lab.serve({2: make_echo(2, during=seen.append)})
    assert lab.exchange(1, 2) == {1: 1.0, 2: 2.0}
    assert len(seen) == 1  # of three: the others are not asked again


def test_a_client_gives_up_when_the_server_is_gone(
    make_lab: "MakeLab", make_echo: "type[Echo]", make_serving: "type[Serving]"
) -> None:
    lab = make_lab(1, reconnect_timeout_s=0.3)
    ticket = lab.ticket(1)
    gone = StreamServer(lab.settings, lab.certificate)
    port = gone.start()
    gone.stop()
    client = StreamClient(lab.ticket(1, port=port))
    client.add(1, ticket.token, make_echo(1))
    error = make_serving(client).error()
    assert isinstance(error, ConnectionError)
    assert f"no connection to the server at 127.0.0.1:{port} for" in str(error)
    assert "Look at the address and the firewall, or at the server's log" in str(error)
    assert client.done


def test_a_request_that_is_too_long_is_not_sent(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, max_frame_bytes=100)
    with pytest.raises(
        ProtocolError, match=r"the request to node 1 is a frame of \d+ bytes; max_frame_bytes is"
    ):
        lab.exchange(1)


def test_a_reply_that_is_too_long_is_an_error_of_its_client(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    def exceed(request: StepRequest) -> StepReply:
        return StepReply(phase=request.phase, id=request.id, labels=torch.zeros(3, 500))

    lab = make_lab(1, max_frame_bytes=5000)
    lab.serve({1: make_echo(1, during=exceed)})
    with pytest.raises(
        ClientError, match=r"node 1, .*ProtocolError: the reply is a frame of 6\d+ bytes; max_fr"
    ):
        lab.exchange(1)


def test_an_address_that_is_taken_is_refused(make_lab: "MakeLab") -> None:
    lab = make_lab(1)
    taken = f"127.0.0.1:{lab.port}"
    server = StreamServer(StreamSettings(address=taken), lab.certificate)
    with pytest.raises(ConfigError, match=f"stream address '{taken}' cannot be listened on"):
        server.start()
