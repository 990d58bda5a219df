import json
import struct
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire import PROTOCOL_VERSION, frames, tensor_table
from flower_psl.wire.frames import Frame, Kind
from flower_psl.wire.tensor_table import pack_tensors, unpack_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def sample(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 2, shape).to(dtype)


def there_and_back(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    data = frames.pack(Kind.REPLY, 1, 2, {}, pack_tensors(tensors))
    return unpack_tensors(frames.unpack(data).tensors)


def assert_alike(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.shape, tensor.dtype) == (right[name].shape, right[name].dtype), name
        assert torch.equal(tensor, right[name]), name


def table(header: object, body: bytes = b"") -> memoryview:
    text = json.dumps(header).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_comes_back_as_it_was(kind: Kind) -> None:
    values = {"text": "é", "number": 1.5, "list": [1, 2], "none": None}
    data = frames.pack(kind, 2**64 - 1, 2**63, values, [b"ab", memoryview(b"c")])
    assert frames.unpack(data) == Frame(kind, 2**64 - 1, 2**63, values, memoryview(b"abc"))


def test_the_bytes_of_a_frame_stay_what_they_are() -> None:
    tensors = pack_tensors({"w": torch.tensor([1.0, -2.0])})
    data = frames.pack(Kind.REQUEST, 0x0102030405060708, 9, {"a": [1, "b"]}, tensors)
    table_text = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert data == (
        b"PSLF\x06\x05\x00\x00"
        b"\x08\x07\x06\x05\x04\x03\x02\x01"
        b"\x09\x00\x00\x00\x00\x00\x00\x00"
        b"\x0d\x00\x00\x00"
        b"\x46\x00\x00\x00\x00\x00\x00\x00"
        b'{"a":[1,"b"]}'
        b"\x36\x00\x00\x00\x00\x00\x00\x00" + table_text + b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = {"a": sample(shape, dtype), "weights/b.c": sample((5,), torch.int8)}
    assert_alike(there_and_back(tensors), tensors)


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(deadline=None, max_examples=50)
@given(kinds=st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5))
def test_any_tensors_come_back_as_they_were(
    kinds: list[tuple[tuple[int, ...], torch.dtype]],
) -> None:
    tensors = {f"t{i}": sample(shape, dtype) for i, (shape, dtype) in enumerate(kinds)}
    assert_alike(there_and_back(tensors), tensors)


def test_tensors_that_are_views_come_back_whole() -> None:
    matrix = torch.arange(12.0).reshape(3, 4).requires_grad_()
    assert_alike(
        there_and_back({"t": matrix.t(), "s": matrix[:, 1::2]}),
        {
            "t": matrix.detach().t().clone(),
            "s": matrix.detach()[:, 1::2].clone(),
        },
    )


def test_a_table_that_is_known_is_held_against_each_payload() -> None:
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for _ in range(2):
        assert_alike(unpack_tensors(table(header, bytes(4))), {"w": torch.zeros(1)})
        with pytest.raises(ProtocolError, match="tensors of 4 bytes in a payload of 8"):
            unpack_tensors(table(header, bytes(8)))


@pytest.mark.parametrize(("length", "misses"), [(60_000, 1), (70_000, 0)])
def test_long_tables_are_not_kept(length: int, misses: int) -> None:
    before = tensor_table._known_entries.cache_info().misses
    tensors = {"w" * length: torch.zeros(1)}
    assert_alike(there_and_back(tensors), tensors)
    assert tensor_table._known_entries.cache_info().misses - before == misses


def test_contiguous_tensors_are_packed_without_a_copy() -> None:
    tensor = torch.zeros(3)
    *_, view = pack_tensors({"w": tensor})
    tensor[0] = 1.0
    assert bytes(view)[:4] == struct.pack("<f", 1.0)


def test_tensors_that_were_read_own_memory_that_is_aligned() -> None:
    packed = b"".join(pack_tensors({"w": torch.zeros(2)}))
    for shift in range(8):
        data = memoryview(bytearray(bytes(shift) + packed))[shift:]
        tensor = unpack_tensors(data)["w"]
        data[-1:] = b"1"
        assert tensor.tolist() == [0.0, 0.0]
        assert tensor.data_ptr() % 64 == torch.empty(2).data_ptr() % 64 == 0


def test_the_library_reads_what_is_packed_and_what_it_saves_is_read() -> None:
    tensors = {str(dtype): sample((2, 3), dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.empty(0, 4)}
    assert_alike(safetensors.torch.load(b"".join(pack_tensors(tensors))), tensors)
    assert_alike(unpack_tensors(memoryview(safetensors.torch.save(tensors))), tensors)


def test_no_tensors_are_no_bytes() -> None:
    assert list(pack_tensors({})) == []
    assert there_and_back({}) == {}


def test_a_dtype_that_does_not_travel_is_not_packed() -> None:
    with pytest.raises(ProtocolError, match="dtype 'complex64' is not one that travels"):
        pack_tensors({"w": torch.zeros(1, dtype=torch.complex64)})


GOOD = frames.pack(Kind.HELLO, 7, 0, {"token": "x"}, [b"1234"])


def changed(at: int, value: bytes) -> bytes:
    return GOOD[:at] + value + GOOD[at + len(value) :]


def with_values(text: bytes) -> bytes:
    return struct.pack("<4sBBHQQIQ", b"PSLF", PROTOCOL_VERSION, 1, 0, 7, 0, len(text), 0) + text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a frame of 0 bytes; its header alone has 36"),
        (GOOD[:35], "a frame of 35 bytes; its header alone has 36. Send it whole"),
        (GOOD[:-1], "a frame of 52 bytes whose header promises 53; it was cut off or changed"),
        (GOOD + b"\0", "a frame of 54 bytes whose header promises 53"),
        (changed(24, b"\xff\xff\xff\xff"), "whose header promises 4294967335"),
        (changed(28, b"\xff" * 8), "whose header promises 18446744073709551664"),
        (changed(0, b"HTTP"), r"bytes that begin with b'HTTP.*' are no frame of flower-psl"),
        (changed(6, b"\x01\x00"), "a frame of 53 bytes whose header promises 49"),
        (changed(6, b"\x02\x00"), "are no frame of flower-psl"),
        (changed(4, b"\x01"), "a frame of protocol 1; this side speaks 6. Install the same"),
        (changed(5, b"\x00"), r"a frame of kind 0; known are \[1, 2, .*, 10, 11\]"),
        (changed(5, b"\x0c"), "a frame of kind 12"),
        (with_values(b""), "a frame's values are no JSON"),
        (with_values(b"{"), "a frame's values are no JSON"),
        (with_values(b'{"a":"\xff"}'), "a frame's values are no JSON"),
        (with_values(b"[" * 100_000), "a frame's values are no JSON"),
        (with_values(b"9" * 5000), "a frame's values are no JSON"),
        (with_values(b"[1]"), "a frame's values are a list, not an object"),
        (with_values(b"null"), "a frame's values are a NoneType, not an object"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        frames.unpack(data)


def test_frames_of_one_message_are_taken_apart() -> None:
    whole = [frames.pack(Kind.REQUEST, node, 1, {}, [bytes(node)]) for node in (1, 0, 5)]
    assert [bytes(part) for part in frames.split(b"".join(whole))] == whole
    assert list(frames.split(b"")) == []


def test_frames_whose_tensors_are_in_memory_end_with_their_values() -> None:
    """And say how many bytes they have there, be it none of theirs."""
    whole = [
        frames.pack(Kind.REPLY, 1, 1, {"a": 1}, in_memory_bytes=2**40),
        frames.pack(Kind.REPLY, 2, 1, {}, [b"1234"]),
    ]
    first, second = (frames.unpack(part) for part in frames.split(b"".join(whole)))
    assert (first.values, bytes(first.tensors), first.in_memory_bytes) == ({"a": 1}, b"", 2**40)
    assert (bytes(second.tensors), second.in_memory_bytes) == (b"1234", 0)


@pytest.mark.parametrize("rest", [b"P", frames.pack(Kind.REQUEST, 1, 1, {}, [bytes(9)])[:-1]])
def test_a_message_that_is_not_whole_is_refused(rest: bytes) -> None:
    parts = frames.split(frames.pack(Kind.HELLO, 1, 0, {}) + rest)
    assert frames.unpack(next(parts)).kind is Kind.HELLO
    with pytest.raises(ProtocolError, match="Send it"):
        frames.unpack(next(parts))


U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (memoryview(b"1"), "a frame's tensors cannot be read"),
        (memoryview(b"\xff" * 8 + b"{}"), "ends at byte"),
        (table([]), "cannot be read"),
        (table({"a": U8}, b"1"), "cut off or changed. Send them again"),
        (table({"a": U8}, b"123"), "tensors of 2 bytes in a payload of 3"),
        (
            table({"a": U8, "b": {**U8, "data_offsets": [1, 3]}}, b"123"),
            "'b' of 2 bytes has the data_offsets 1 to 3; the one before it ends at 2",
        ),
        (table({"a": {**U8, "data_offsets": [2, 0]}}, b"12"), "cannot be read"),
        (table({"a": {**U8, "shape": [3]}}, b"12"), "cannot be read"),
        (table({"a": {**U8, "shape": [2**63, 4]}}, b"12"), "cannot be read"),
        (table({"a": {**U8, "shape": [0, 2**63], "data_offsets": [0, 0]}}), "cannot be read"),
        (table({"a": {**U8, "dtype": "F4"}}, b"12"), "cannot be read"),
        (table({"a": {**U8, "dtype": ["U8"]}}, b"12"), "'a' is .*; a tensor has a dtype, one of"),
        (table({"a": {**U8, "shape": "2"}}, b"12"), "'a' is .* a shape and two data_offsets"),
        (table({"a": {**U8, "shape": [2.0]}}, b"12"), r"'a' has shape \(2.0,\); a shape has"),
        (table({"a": {**U8, "shape": [True, 2]}}, b"12"), r"'a' has shape \(True, 2\); a shape"),
        (table({"a": {**U8, "shape": [1] * 17}}, b"1"), "'a' has shape .* at most 16 sizes"),
        (table({"a": {**U8, "shape": [2, -1]}}, b"12"), r"'a' has shape \(2, -1\); a shape has"),
        (
            table({"a": {**U8, "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}),
            "'a' has shape .* whose product 64 bits can hold. Send the tensor's shape",
        ),
        (table({"a": {**U8, "data_offsets": [0, 1, 2]}}, b"12"), "and two data_offsets"),
        (table({"a": 1}), "'a' is 1; a tensor has a dtype"),
        (table({str(i): U8 for i in range(20_000)}), "bytes of JSON; at most 1000000 are read"),
        (table({"a": {**U8, "dtype": "text"}}, b"12"), "cannot be read"),
        (
            table({"a": {**U8, "dtype": "U16", "shape": [1]}}, b"12"),
            "'a' is .*'U16'.*; a tensor has a dtype, one of",
        ),
        (
            table({"a": {**U8, "dtype": "F8_E4M3"}}, b"12"),
            "'a' is .*'F8_E4M3'.* has a dtype, one of",
        ),
    ],
)
def test_bytes_that_are_no_tensors_are_refused(data: memoryview, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        unpack_tensors(data)


def flip(draws: np.random.Generator, data: bytearray) -> None:
    data[draws.integers(len(data))] ^= 1 << int(draws.integers(8))


def truncate(draws: np.random.Generator, data: bytearray) -> None:
    del data[draws.integers(1, len(data)) :]


def insert(draws: np.random.Generator, data: bytearray) -> None:
    at = draws.integers(len(data) + 1)
    data[at:at] = draws.bytes(int(draws.integers(1, 9)))


def grow(draws: np.random.Generator, data: bytearray) -> None:
    """Change a length, as a peer would that wants memory for nothing."""
    at = int(draws.choice([24, 28, 36]))
    data[at : at + 8] = draws.bytes(8)


MUTATIONS: list[Callable[[np.random.Generator, bytearray], None]] = [flip, truncate, insert, grow]


def test_mutated_frames_are_refused_or_read_and_nothing_else() -> None:
    draws = np.random.default_rng(0)
    originals = [
        frames.pack(Kind.HELLO, 7, 0, {"token": "0123456789abcdef"}),
        frames.pack(
            Kind.REPLY,
            7,
            3,
            {"phase": "forward", "id": [1, 2, 3], "compute-s": 0.5, "unused": ["a"]},
            pack_tensors({"activations": torch.rand(2, 3), "labels": torch.arange(2)}),
        ),
        frames.pack(Kind.REPLY, 7, 3, {}, pack_tensors({"w": torch.empty(0, 4)})),
    ]
    outcomes = {"refused": 0, "tensors refused": 0, "read": 0}
    for index in range(12_000):
        data = bytearray(originals[index % len(originals)])
        for _ in range(int(draws.integers(1, 4))):
            if len(data) >= 44:
                MUTATIONS[int(draws.integers(len(MUTATIONS)))](draws, data)
        try:
            frame = frames.unpack(bytes(data))
        except ProtocolError:
            outcomes["refused"] += 1
            continue
        try:
            unpack_tensors(frame.tensors)
        except ProtocolError:
            outcomes["tensors refused"] += 1
        else:
            outcomes["read"] += 1
    assert all(count > 50 for count in outcomes.values()), outcomes


def test_frames_that_come_in_pieces_are_whole_when_their_last_byte_has_come() -> None:
    sent = [frames.pack(Kind.REQUEST, n, 1, {"a": n}, [bytes(n)]) for n in (0, 1, 50)]
    sent.append(frames.pack(Kind.REPLY, 3, 1, {}, in_memory_bytes=10**9))
    data = b"".join(sent)
    ends = [sum(map(len, sent[: n + 1])) for n in range(len(sent))]
    for length in range(len(data) + 1):
        whole = frames.whole_bytes(data[:length], max_frame_bytes=len(sent[2]))
        assert whole == max([0, *(end for end in ends if end <= length)])


@pytest.mark.parametrize("data", [b"PSLG" + bytes(32), b"PSLF" + b"\xff" * 32])
def test_what_cannot_become_a_frame_is_refused_by_its_header(data: bytes) -> None:
    before = frames.pack(Kind.REQUEST, 1, 1, {})
    assert frames.whole_bytes(before + data[:-1], 100) == len(before)
    with pytest.raises(ProtocolError, match="are no frame of flower-psl of at most 100 bytes"):
        frames.whole_bytes(before + data, 100)
