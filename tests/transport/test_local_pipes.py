"""Pipes beside a stream, between processes of one machine."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from flower_psl import ProtocolError
from flower_psl.transport import stream_server
from flower_psl.transport.local_pipes import LocalPipes, OfferedPipes, open_offered
from flower_psl.transport.stream_call import StreamCall
from flower_psl.wire import StepRequest, frames
from flower_psl.wire.frames import Kind

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, Lab, MakeLab

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")

LONGEST = 10**6


class Pair:
    """Both sides of a pair of pipes, what they got, and whether they ended."""

    def __init__(self) -> None:
        self.got: dict[str, list[bytes]] = {"server": [], "node": []}
        self.ended: list[str] = []
        self.errors: list[str] = []
        self.server, self.node = (self._side(name) for name in self.got)
        self.offered = OfferedPipes(self.server)

    def _side(self, name: str) -> LocalPipes:
        def end(error: ProtocolError | None) -> None:
            self.ended.append(name)
            if error is not None:
                self.errors.append(str(error))

        return LocalPipes(self.got[name].append, end, LONGEST)

    async def open(self) -> "Pair":
        assert await open_offered(await self.offered.open(), self.node)
        self.offered.withdraw()
        self.server.read()
        self.node.read()
        return self

    def close(self) -> None:
        self.server.close()
        self.node.close()
        self.offered.withdraw()


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def frame(node: int, length: int = 0) -> bytes:
    return frames.pack(Kind.REQUEST, node, 1, {"a": "b"}, [bytes(length)])


def test_frames_come_whole_and_in_order_however_long_they_are() -> None:
    async def run() -> None:
        pair = await Pair().open()
        sent = [frame(1), frame(2, 900_000), frame(3), frame(4, 70_000)]
        for each in sent:
            pair.server.write(each)
            pair.node.write(each)
        for got in pair.got.values():
            await until(lambda got=got: sum(map(len, got)) == sum(map(len, sent)))  # type: ignore[misc]
            assert [bytes(each) for message in got for each in frames.split(message)] == sent
        pair.close()
        assert pair.ended == []

    asyncio.run(run())


def test_nothing_is_read_before_it_is_to_be() -> None:
    async def run() -> None:
        pair = Pair()
        assert await open_offered(await pair.offered.open(), pair.node)
        pair.server.write(frame(1))
        pair.node.write(frame(2))
        await asyncio.sleep(0.05)
        assert pair.got == {"server": [], "node": []}
        pair.server.read()
        pair.node.read()
        await until(lambda: pair.got == {"server": [frame(2)], "node": [frame(1)]})
        pair.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["bytes", "a long frame"])
def test_what_is_no_frame_ends_the_pipes(name: str) -> None:
    async def run() -> None:
        pair = await Pair().open()
        pair.node.write(frame(1))
        pair.node.write(bytes(100) if name == "bytes" else frame(2, LONGEST))
        await until(lambda: bool(pair.ended))
        assert pair.ended[0] == "server"
        assert len(pair.errors) == 1
        assert "are no frame of flower-psl of at most 1000000 bytes" in pair.errors[0]
        assert pair.got["server"] in ([frame(1)], [])
        await until(lambda: len(pair.ended) == 2)  # the other side sees that they are closed
        pair.close()

    asyncio.run(run())


@pytest.mark.parametrize("side", ["server", "node"])
def test_a_side_that_closes_is_missed_by_the_other(side: str) -> None:
    async def run() -> None:
        pair = await Pair().open()
        (pair.server if side == "server" else pair.node).close()
        await until(lambda: bool(pair.ended))
        assert pair.ended == ["node" if side == "server" else "server"]
        pair.node.write(frame(1))  # to nobody
        pair.close()

    asyncio.run(run())


def test_what_is_not_what_was_offered_is_not_opened() -> None:
    async def run() -> None:
        pair = Pair()
        values = await pair.offered.open()
        requests = values["requests"]
        assert isinstance(requests, list)
        file, inode = requests
        for wrong in (
            {},
            values | {"process": 2**22 + 1},  # more than there can be
            values | {"process": "1/../1"},
            values | {"process": "1\0"},
            values | {"requests": [file, str(inode)]},
            values | {"answers": [str(file), inode]},
            values | {"requests": [file, inode + 1]},
            values | {"requests": [0, 0]},
            values | {"answers": [file]},
            values | {"answers": "12"},
            {name: each for name, each in values.items() if name != "answers"},
        ):
            before = len(os.listdir("/proc/self/fd"))
            assert not await open_offered(wrong, pair.node)
            assert len(os.listdir("/proc/self/fd")) == before
        pair.offered.withdraw()
        assert not await open_offered(values, pair.node)
        pair.close()

    asyncio.run(run())


def uses_pipes(lab: "Lab", node: int) -> bool:
    lab.server.absent()  # what the server's thread was to do before is done
    connection = lab.server._nodes[node].connection
    return connection is not None and connection._pipes is not None


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait as `until` does, for what other threads do."""
    asyncio.run(until(is_so))


def await_pipes(lab: "Lab", node: int) -> None:
    wait_until(lambda: uses_pipes(lab, node))


def test_a_process_of_this_machine_uses_pipes(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, 2, 3)
    lab.serve({node: make_echo(node) for node in (1, 2)})
    lab.serve({3: make_echo(3)})
    for node in (1, 2, 3):
        await_pipes(lab, node)
    pipes = {id(lab.server._nodes[node].connection._pipes) for node in (1, 2, 3)}  # type: ignore[union-attr]
    assert len(pipes) == 2  # one pair a connection
    for _ in range(3):
        assert lab.exchange(1, 2, 3) == {1: 1.0, 2: 2.0, 3: 3.0}


def test_it_can_be_left_out(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1, shared_memory=False)
    lab.serve({1: make_echo(1)})
    assert lab.exchange(1) == {1: 1.0}
    assert not uses_pipes(lab, 1)


def test_who_does_not_open_them_is_served_over_the_stream(make_lab: "MakeLab") -> None:
    lab = make_lab(1)
    stream = lab.raw_node(1)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, lab.requests(1), 20)
        assert stream.read().kind is Kind.WEIGHTS
        request = stream.read()
        stream.send(frames.pack(Kind.PIPES, 1, 0, {"opened": False}))
        # Once is enough: there is no offer any more.
        stream.send(frames.pack(Kind.PIPES, 1, 0, {"opened": True}))
        stream.send(frames.pack(Kind.ERROR, 1, request.sequence, {"reason": "none"}))
        assert "none" in str(exchange.result(20).failures[1])
    assert not uses_pipes(lab, 1)
    assert lab.server.refused == {"frame of a kind that nodes do not send": 1}


def test_what_is_on_the_stream_comes_before_what_is_in_the_pipe(make_lab: "MakeLab") -> None:
    lab = make_lab(1)
    stream = lab.raw_node(1)
    offer = stream.read_about_pipes().values
    answers = offer["answers"]
    assert isinstance(answers, list)
    pipe = os.open(f"/proc/{offer['process']}/fd/{answers[0]}", os.O_WRONLY)
    with ThreadPoolExecutor(1) as pool:
        exchange = pool.submit(lab.transport.exchange, lab.requests(1), 20)
        assert stream.read().kind is Kind.WEIGHTS
        sequence = stream.read().sequence
        os.write(pipe, frames.pack(Kind.ERROR, 1, sequence, {"reason": "second"}))
        time.sleep(0.05)  # in which it would be read, if it was to be
        stream.send(frames.pack(Kind.ERROR, 1, sequence, {"reason": "first"}))
        assert "first" in str(exchange.result(20).failures[1])
    stream.send(frames.pack(Kind.PIPES, 1, 0, {"opened": True}))
    assert stream.read_about_pipes().values == {}  # nothing more comes here
    wait_until(lambda: lab.server.refused == {"frame for another request": 1})
    os.close(pipe)


class IdleStream:
    """What a stream is to its devices, while nothing comes and until it ends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended = asyncio.Event()

    async def read(self) -> bytes:
        await self.ended.wait()
        raise RuntimeError("it has ended")

    async def write(self, data: bytes) -> None:
        self.sent.append(data)

    def cancel(self) -> None: ...


def test_a_node_reads_the_pipe_when_the_stream_carries_nothing_more() -> None:
    async def run() -> None:
        pair, stream = Pair(), IdleStream()
        call = StreamCall(stream, LONGEST)
        offer = frames.pack(Kind.PIPES, 7, 0, await pair.offered.open())
        await call.write(frame(1))
        await call.take_pipes(frames.unpack(offer))
        pair.server.write(frame(2))
        await call.write(frame(3))
        assert stream.sent == [frame(1), frames.pack(Kind.PIPES, 7, 0, {"opened": True})]
        reading = asyncio.create_task(call.read())
        await asyncio.sleep(0.05)
        assert not reading.done()
        await call.take_pipes(frames.unpack(frames.pack(Kind.PIPES, 0, 0, {})))
        assert await reading == frame(2)
        pair.server.read()
        await until(lambda: pair.got["server"] == [frame(3)])
        call.close()
        pair.close()

    asyncio.run(run())


@pytest.mark.parametrize("ends", ["read", "lost", "closed"])
def test_a_node_waits_until_a_long_frame_is_on_its_way(ends: str) -> None:
    async def run() -> None:
        pair, stream = Pair(), IdleStream()
        call = StreamCall(stream, LONGEST)
        await call.take_pipes(
            frames.unpack(frames.pack(Kind.PIPES, 7, 0, await pair.offered.open()))
        )
        writing = asyncio.create_task(call.write(frame(1, 900_000)))
        await asyncio.sleep(0.05)
        assert not writing.done()
        match ends:
            case "read":
                pair.server.read()
            case "lost":
                stream.ended.set()
            case _:
                pair.server.close()
                pair.offered.withdraw()  # else somebody could still read it
        await asyncio.wait_for(writing, 20)
        if ends == "lost":
            with pytest.raises(RuntimeError, match="it has ended"):
                await call.read()
        elif ends == "read":
            await until(lambda: pair.got["server"] == [frame(1, 900_000)])
        call.close()
        pair.close()

    asyncio.run(run())


def test_an_offer_that_nobody_answers_leaves_no_file_open() -> None:
    async def run() -> None:
        before = set(os.listdir("/proc/self/fd"))
        pair = Pair()
        await pair.offered.open()
        pair.server.close()
        del pair.offered
        await until(lambda: set(os.listdir("/proc/self/fd")) == before)

    asyncio.run(run())


def test_who_declines_leaves_the_place_to_others(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_server, "_MOST_WITH_PIPES", 1)
    lab = make_lab(1, 2)
    stream = lab.raw_node(1)
    stream.read_about_pipes()
    stream.send(frames.pack(Kind.PIPES, 1, 0, {"opened": False}))
    connection = lab.server._nodes[1].connection
    assert connection is not None
    wait_until(lambda: not connection.may_use_pipes)
    lab.serve({2: make_echo(2)})
    await_pipes(lab, 2)


def test_there_are_only_so_many(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_server, "_MOST_WITH_PIPES", 1)
    lab = make_lab(1, 2)
    lab.serve({1: make_echo(1)})
    await_pipes(lab, 1)
    lab.serve({2: make_echo(2)})
    assert lab.exchange(1, 2) == {1: 1.0, 2: 2.0}
    assert [uses_pipes(lab, node) for node in (1, 2)] == [True, False]


def test_too_many_open_files_cost_only_speed(
    make_lab: "MakeLab", make_echo: "type[Echo]", monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: OfferedPipes) -> None:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(OfferedPipes, "open", fail)
    lab = make_lab(1)
    lab.serve({1: make_echo(1)})
    assert lab.exchange(1) == {1: 1.0}
    assert not uses_pipes(lab, 1)


def test_what_is_no_frame_is_counted_and_the_node_comes_again(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    def garble(_: StepRequest) -> None:
        if not lab.server.refused:
            serving.client._connection._pipes.write(bytes(100))  # type: ignore[union-attr]

    lab = make_lab(1)
    serving = lab.serve({1: make_echo(1, during=garble)})
    await_pipes(lab, 1)
    assert lab.exchange(1) == {1: 1.0}
    assert lab.server.refused == {"malformed frame": 1}


@pytest.mark.parametrize("side", ["server", "node"])
def test_pipes_that_break_alone_lose_no_request(
    make_lab: "MakeLab", make_echo: "type[Echo]", side: str
) -> None:
    lab = make_lab(1)
    broken: list[LocalPipes] = []

    def cut_off(_: StepRequest) -> None:
        if not broken:
            pipes = serving.client._connection._pipes  # type: ignore[union-attr]
            if side == "server":
                connection = lab.server._nodes[1].connection
                assert connection is not None
                assert connection._pipes is not None
                pipes = connection._pipes
            broken.append(pipes)
            # In the loop of that side; the device computes in the other's.
            if side == "server":
                lab.server._call(pipes.close)
            else:
                pipes.close()

    serving = lab.serve({1: make_echo(1, during=cut_off)})
    await_pipes(lab, 1)
    assert lab.exchange(1) == {1: 1.0}
    assert broken
    await_pipes(lab, 1)  # it came again, and was offered pipes again
    assert lab.exchange(1) == {1: 1.0}


def test_nothing_stays_open(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    def num_pipes() -> int:
        names = []
        for file in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{file}"))
            except FileNotFoundError:
                continue
        return sum(name.startswith("pipe:") for name in names)

    before = num_pipes()
    lab = make_lab(1, 2)
    for node in (1, 2):
        lab.serve({node: make_echo(node)})
        await_pipes(lab, node)
    assert num_pipes() == before + 8
    lab.server.goodbye()
    wait_until(lambda: num_pipes() <= before)
