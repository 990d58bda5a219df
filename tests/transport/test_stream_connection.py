import asyncio

from flower_psl.transport.stream_connection import Connection, Node, Request


class Written:
    """A call that keeps what is written to it."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self.messages.append(message)


def messages_of(*frames: bytes) -> list[bytes]:
    """Return what is written when all frames are there before the writer begins."""
    written = Written()

    async def write() -> None:
        connection = Connection()
        for frame in frames:
            connection.send(frame)
        task = asyncio.create_task(connection.write(written))
        await asyncio.sleep(0)
        connection.send(b"later")
        while written.messages[-1] != b"later":
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(write())
    return written.messages[:-1]


def test_short_frames_that_are_there_go_as_one_message() -> None:
    assert messages_of(b"a", b"bc", b"d") == [b"abcd"]


def test_long_frames_go_by_themselves_and_in_order() -> None:
    long = bytes(262_144)
    assert messages_of(b"a", long, b"b", b"c") == [b"a", long, b"bc"]
    assert messages_of(bytes(200_000), bytes(100_000)) == [bytes(200_000), bytes(100_000)]


def test_weights_go_once_and_requests_that_nobody_awaits_are_remembered() -> None:
    weights = b"weights"
    sent: list[bytes] = []

    async def ask() -> None:
        node = Node("token", Connection())
        assert node.connection is not None
        for sequence, shared in ((1, weights), (2, weights), (3, b"others")):
            node.ask(Request(sequence, b"%d" % sequence, shared))
        assert node.given_up == {1, 2}
        written = Written()
        task = asyncio.create_task(node.connection.write(written))
        await asyncio.sleep(0)
        task.cancel()
        sent.extend(written.messages)

    asyncio.run(ask())
    assert sent == [b"weights12others3"]
