"""Memory that two processes could share, both ends of it in this one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flower_psl import ProtocolError
from flower_psl.transport.shared_memory import (
    MemoryOffer,
    SharedMemory,
    open_offered,
    pack_with,
    tensors_of,
)
from flower_psl.wire import frames
from flower_psl.wire.frames import Kind
from flower_psl.wire.tensor_table import pack_tensors

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory that is shared in this way"
)
CAPACITY = 100_000


def ends() -> tuple[SharedMemory, SharedMemory]:
    """Return the server's end and the node's."""
    offer = MemoryOffer(CAPACITY)
    opened = open_offered(offer.to_values())
    assert opened is not None
    return offer.memory, opened


def test_either_end_finds_what_the_other_has_put() -> None:
    server, node = ends()
    down, up = b"\x01" * 20_000, b"\x02" * CAPACITY
    assert server.put(1, [down[:1], down[1:]]) == 20_000
    assert node.put(1, [memoryview(up)]) == CAPACITY
    assert (bytes(node.received(20_000)), bytes(server.received(CAPACITY))) == (down, up)
    assert (bytes(server.sent(20_000)), bytes(node.sent(CAPACITY))) == (down, up)


def test_nothing_is_written_over_before_it_was_read() -> None:
    server, node = ends()
    first, second = b"\x01" * 20_000, b"\x02" * 20_000
    assert server.put(5, [first])
    assert server.put(6, [second]) == 0
    server.free(4)  # the answer to an earlier request tells nothing
    assert server.put(6, [second]) == 0
    assert bytes(node.received(20_000)) == first
    server.free(5)
    assert server.put(6, [second])
    assert bytes(node.received(20_000)) == second
    server.free(8)
    assert server.put(9, [first])


@pytest.mark.parametrize("length", [0, 1, 16_383, CAPACITY + 1])
def test_what_is_short_or_has_no_room_goes_with_its_frame(length: int) -> None:
    server, _ = ends()
    assert server.put(1, [bytes(length)]) == 0
    assert server.put(1, [bytes(16_384)])  # and holds nothing up


def test_another_process_opens_it_and_keeps_it_when_this_one_closes_its_file() -> None:
    offer = MemoryOffer(CAPACITY)
    script = (
        "import sys, json\n"
        "from flower_psl.transport.shared_memory import open_offered\n"
        "memory = open_offered(json.loads(sys.stdin.readline()))\n"
        "print('opened', flush=True)\n"
        "length = int(sys.stdin.readline())\n"
        "print(memory.put(1, [bytes(memory.received(length))[::-1]]), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(str(offer.to_values()).replace("'", '"') + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "opened\n"
        memory, values = offer.memory, offer.to_values()
        del offer
        assert open_offered(values) is None
        sent = os.urandom(50_000)
        assert memory.put(1, [sent])
        process.stdin.write("50000\n")
        process.stdin.flush()
        assert process.stdout.readline() == "50000\n"
        assert bytes(memory.received(50_000)) == sent[::-1]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_neither_end_keeps_a_file_open() -> None:
    before = open_files()
    pairs = [ends() for _ in range(5)]
    assert open_files() == before
    assert len(pairs) == 5


def test_its_size_is_fixed_and_other_users_cannot_open_it() -> None:
    offer = MemoryOffer(CAPACITY)
    path = f"/proc/self/fd/{offer.to_values()['file']}"
    for size in (4096, 10**9):
        with pytest.raises(PermissionError):
            os.truncate(path, size)
    assert os.stat(path).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda values: {**values, "secret": "00" * 32},
        lambda values: {**values, "secret": ""},
        lambda values: {**values, "secret": "\ud800"},
        lambda values: {**values, "capacity-bytes": CAPACITY + 1},
        lambda values: {**values, "capacity-bytes": -1},
        lambda values: {**values, "process": 2**22 + 1},
        lambda values: {**values, "file": 10**6},
        lambda values: {**values, "file": "../../../etc/passwd"},
        lambda values: {**values, "secret": None},
        lambda values: {"process": values["process"]},
        lambda _: {},
    ],
)
def test_nothing_else_is_opened(
    change: Callable[[dict[str, object]], dict[str, object]],
) -> None:
    offer = MemoryOffer(CAPACITY)
    assert open_offered(change({**offer.to_values()})) is None


def test_a_file_at_that_place_is_neither_opened_nor_changed(tmp_path: Path) -> None:
    """On another machine the same numbers can stand for any open file."""
    values = MemoryOffer(CAPACITY).to_values()
    content = str(values["secret"]).encode() + bytes(4096 - 64 + 2 * CAPACITY)
    place = tmp_path / "file"
    place.write_bytes(content)
    with place.open("r+b") as file:
        assert open_offered({**values, "file": file.fileno()}) is None
    assert place.read_bytes() == content


def test_memory_that_could_be_cut_off_is_not_opened() -> None:
    values = MemoryOffer(CAPACITY).to_values()
    file = os.memfd_create("flower-psl", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(file, 4096 + 2 * CAPACITY)
        os.pwrite(file, str(values["secret"]).encode(), 0)
        assert open_offered({**values, "file": file}) is None
    finally:
        os.close(file)


def test_a_system_without_such_memory_offers_and_opens_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = MemoryOffer(CAPACITY).to_values()
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="no memory that can be shared"):
        MemoryOffer(CAPACITY)
    assert open_offered(values) is None


def test_memory_that_cannot_be_mapped_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 204096 bytes")

    before = open_files()
    offer = MemoryOffer(CAPACITY)
    monkeypatch.setattr(torch, "from_file", fail)
    assert open_offered(offer.to_values()) is None
    with pytest.raises(OSError, match="cannot be mapped: unable to mmap 204096 bytes"):
        MemoryOffer(CAPACITY)
    del offer
    assert open_files() == before


def test_frames_say_where_their_tensors_are() -> None:
    server, node = ends()
    draws = torch.Generator().manual_seed(0)
    long = {
        "a": torch.rand(6000, generator=draws),
        "b": torch.randint(9, (7,), generator=draws),
    }
    short = {"a": torch.ones(3)}
    for tensors, is_in_memory in ((long, True), (short, False), (long, False)):
        data = pack_with(server, Kind.REQUEST, 7, 1, {"x": 1}, pack_tensors(tensors))
        frame = frames.unpack(data)
        assert (frame.kind, frame.node, frame.values) == (Kind.REQUEST, 7, {"x": 1})
        assert bool(frame.in_memory_bytes) is is_in_memory
        assert len(frame.tensors) == 0 if is_in_memory else len(frame.tensors) > 0
        got = tensors_of(frame, node)
        assert got.keys() == tensors.keys()
        assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    without = frames.unpack(pack_with(None, Kind.REQUEST, 7, 1, {}, pack_tensors(long)))
    assert torch.equal(tensors_of(without, None)["a"], long["a"])


def test_received_tensors_do_not_change_with_the_memory() -> None:
    server, node = ends()
    tensors = {"a": torch.ones(6000)}
    got = tensors_of(
        frames.unpack(pack_with(server, Kind.REQUEST, 7, 1, {}, pack_tensors(tensors))), node
    )
    server.free(1)
    assert server.put(2, [bytes(30_000)])
    assert torch.equal(got["a"], tensors["a"])


def test_a_frame_that_promises_what_is_not_there_is_refused() -> None:
    server, _ = ends()
    long = frames.unpack(frames.pack(Kind.REPLY, 7, 1, {}, in_memory_bytes=CAPACITY + 1))
    with pytest.raises(
        ProtocolError, match="100001 bytes of tensors in a shared memory of 100000"
    ):
        tensors_of(long, server)
    with pytest.raises(ProtocolError, match=r"shared memory; this connection has none\. Send"):
        tensors_of(long, None)
    empty = frames.unpack(frames.pack(Kind.REPLY, 7, 1, {}, in_memory_bytes=CAPACITY))
    with pytest.raises(ProtocolError, match="a frame's tensors cannot be read"):
        tensors_of(empty, server)
