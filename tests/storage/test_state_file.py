import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from flower_psl.errors import CheckpointError
from flower_psl.storage import DamagedStateError, State, pack_state, unpack_state
from flower_psl.storage.state_file import _CHECKSUM

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
]


def packed(state: State) -> bytes:
    return b"".join(pack_state(state))


def same(left: Any, right: Any) -> bool:
    """Tell whether two states are alike: types, dtypes, shapes and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and same(left.reshape(-1).view(torch.uint8).tolist(), bytes_of(right))
    if isinstance(left, (np.ndarray, np.generic)):
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and left.tobytes() == right.tobytes()
    if isinstance(left, Mapping):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right) and str(left) == str(right)


def bytes_of(tensor: Tensor) -> list[int]:
    return list(tensor.reshape(-1).view(torch.uint8).tolist())


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.builds(torch.full, st.just((2,)), st.floats(width=32))
    | st.builds(np.full, st.just((1, 2)), st.floats())
    | st.builds(np.float32, st.floats(width=32))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.dictionaries(st.integers(), st.integers(), max_size=2).map(Counter)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), TREES, max_size=4))
def test_a_state_comes_back_to_the_last_bit(state: State) -> None:
    assert same(unpack_state(packed(state), "here"), state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    state = {"whole": values, "view": values.transpose(0, 2)[1:], "none": values[:, :0]}
    state["scalar"] = values[0, 0, 1]
    back = unpack_state(packed(state), "here")
    assert back.keys() == state.keys()
    assert all(same(back[name], tensor.contiguous()) for name, tensor in state.items())


def test_tensors_are_those_of_a_safetensors_file(tmp_path: Path) -> None:
    state = {"model": {"conv.weight": torch.ones(2, 2)}, "steps": 3}
    (tmp_path / "file.safetensors").write_bytes(packed(state))
    read = load_file(tmp_path / "file.safetensors")
    assert list(read) == ["model/conv.weight"]


def test_packing_copies_no_tensor() -> None:
    tensor = torch.zeros(100)
    pieces = pack_state({"weights": tensor})
    tensor.fill_(1)
    assert bytes(pieces[1]) == bytes(torch.ones(100).numpy().data.cast("B"))


def test_equal_paths_of_different_tensors_are_told_apart() -> None:
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
    assert same(unpack_state(packed(state), "here"), state)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (max, "builtin_function"),
        (b"", "bytes"),
        ({1}, "set"),
        (1j, "complex"),
        (np.array(["a"]), "ndarray"),
        (torch.eye(2).to_sparse(), "Tensor"),
        (torch.empty(2, device="meta"), "Tensor"),
    ],
)
def test_what_a_file_cannot_hold_is_named(value: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"optimizer/0 is a {said}.*holds numbers.*Keep"):
        pack_state({"optimizer": [value]})


def test_a_dtype_that_a_file_cannot_hold_is_named() -> None:
    state = {"phase": torch.zeros(1, dtype=torch.complex128)}
    with pytest.raises(CheckpointError, match=r"phase is torch.complex128; .* holds .* Convert"):
        pack_state(state)


STATE = {
    "model": {"weight": torch.arange(12.0).reshape(3, 4)},
    "history": [(1, 0.5, math.inf), {"loss": np.float64(0.25)}],
    "rounds": Counter({1: 2}),
}


def test_no_flipped_bit_and_no_cut_goes_unseen() -> None:
    data = packed(STATE)
    draws = np.random.default_rng(0)
    for _ in range(5000):
        changed = bytearray(data)
        at, bit = int(draws.integers(len(data))), int(draws.integers(8))
        changed[at] ^= 1 << bit
        with pytest.raises(DamagedStateError, match=r"^here: its .*Use one that is whole"):
            unpack_state(bytes(changed), "here")
    for length in range(len(data)):
        with pytest.raises(DamagedStateError, match=f"here: its.* {length} bytes.*that is whole"):
            unpack_state(data[:length], "here")
    with pytest.raises(DamagedStateError):
        unpack_state(data + b" ", "here")


def checksummed(header: object, tail: bytes) -> bytes:
    """Return a file whose checksum is right, whatever its header says."""
    import hashlib

    text = json.dumps(header, separators=(",", ":")).encode()
    data = bytearray(len(text).to_bytes(8, "little") + text + tail)
    data[_CHECKSUM] = b"0" * 64
    data[_CHECKSUM] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


SCALARS = [None, True, -1, 2**70, 1e308, "x", "", [], [1], {}, {"map": 3}, {"tensor": "none"}]


def mutated(tree: Any, draws: np.random.Generator) -> Any:
    """Return a JSON value with one thing in it changed."""
    if isinstance(tree, (dict, list)) and tree and draws.random() < 0.8:
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = keys[int(draws.integers(len(keys)))]
        if draws.random() < 0.2:
            del copy[key]
        else:
            copy[key] = mutated(copy[key], draws)
        return copy
    return SCALARS[int(draws.integers(len(SCALARS)))]


def test_changed_headers_are_refused_or_harmless() -> None:
    header, tail = parts(packed(STATE))
    draws = np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        changed = {**header, "__metadata__": {**header["__metadata__"]}}
        if draws.random() < 0.5:
            tree = mutated(json.loads(header["__metadata__"]["state"]), draws)
            changed["__metadata__"]["state"] = json.dumps(tree)
        else:
            name = list(header)[int(draws.integers(1, len(header)))]
            changed[name] = mutated(header[name], draws)
        try:
            unpack_state(checksummed(changed, tail), "here")
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith("here: ")
    assert refused > 1000


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"map":' * 100_000])
def test_deep_nesting_is_refused(deep: str) -> None:
    header, tail = parts(packed(STATE))
    header["__metadata__"]["state"] = deep
    with pytest.raises(CheckpointError, match=r"^here: "):
        unpack_state(checksummed(header, tail), "here")


def test_another_format_is_refused_by_its_number() -> None:
    header, tail = parts(packed(STATE))
    header["__metadata__"]["format"] = "99"
    with pytest.raises(CheckpointError, match=r"here: .* format 99; .* writes 1") as info:
        unpack_state(checksummed(header, tail), "here")
    assert not isinstance(info.value, DamagedStateError)
