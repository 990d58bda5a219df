"""What the fuzz tests share: lies, and what must become of every one of them.

A mutant is refused with an error of ours that names what was mutated, or is harmless: it is
read, and what was read keeps the promises that the test looks at. Anything else fails.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from flower_psl import PslError

Draws = np.random.Generator
Values = dict[str, Any]


class Mutant(NamedTuple):
    """Something to be read, and the words of which a refusal must use one, or a pattern of it."""

    read: Callable[[], object]
    fields: Collection[str] | re.Pattern[str]

    def is_named_in(self, text: str) -> bool:
        if isinstance(self.fields, re.Pattern):
            return self.fields.search(text) is not None
        return any(field in text for field in self.fields)


def _nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [_nested(depth - 1)]


# Values of every type that JSON knows, where its types or the machine's come to their ends.
LIES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, 0.5, -0.5, 1e7, 1e308, math.nan, math.inf, -math.inf),
    *("", "0", "[]", "float64", "__class__", "x" * 5000, "\x1b[2J\nINFO", "\ud800", "\0"),
    *([], [[]], [None], [0] * 1000, _nested(300), {}, {"a": 1}),
)


def lie(draws: Draws, value: Any) -> Any:
    """Return another value: any, or one like the value that is there."""
    kind = type(value) if draws.integers(3) else None
    if kind is dict and value:
        return mutated(draws, value)[0]
    if kind is list and value:
        at = int(draws.integers(len(value)))
        changes = (
            [*value[:at], lie(draws, value[at]), *value[at + 1 :]],
            [*value[:at], *value[at + 1 :]],
            [*value, value[at]],
        )
        return changes[int(draws.integers(len(changes)))]
    if kind is str and value:
        at = int(draws.integers(len(value)))
        return (value[:at], value + value, value[:at] + chr(int(draws.integers(1, 3000))))[
            int(draws.integers(3))
        ]
    if kind is int:
        return (value + 1, value - 1, -value, value * 2**32, float(value))[int(draws.integers(5))]
    if kind is float:
        return (-value, value * 1e300, value + 1, str(value))[int(draws.integers(4))]
    return LIES[int(draws.integers(len(LIES)))]


def mutated(draws: Draws, values: Mapping[str, Any]) -> tuple[Values, str]:
    """Return values of which one is missing, has another name or is a lie, and its name."""
    name = list(values)[int(draws.integers(len(values)))]
    match int(draws.integers(8)):
        case 0:
            return {key: value for key, value in values.items() if key != name}, name
        case 1:
            other = name[:-1] + chr(int(draws.integers(1, 3000)))
            return {other if key == name else key: value for key, value in values.items()}, name
    return {**values, name: lie(draws, values[name])}, name


def scratched(draws: Draws, data: bytes) -> bytes:
    """Return bytes of which some are changed, missing or new."""
    changed = bytearray(data)
    for _ in range(int(draws.integers(1, 4))):
        at = int(draws.integers(len(changed) + 1))
        match int(draws.integers(4)):
            case 0:
                del changed[at:]
            case 1:
                changed[at:at] = draws.bytes(int(draws.integers(1, 9)))
            case 2:
                changed[at : at + 8] = draws.bytes(8)
            case _ if at < len(changed):
                changed[at] ^= 1 << int(draws.integers(8))
    return bytes(changed)


_CHECKSUM = slice(35, 99)  # where a saved state has it


def sealed(data: bytes) -> bytes:
    """Return a saved state with the checksum that it should have."""
    blank = data[: _CHECKSUM.start] + b"0" * 64 + data[_CHECKSUM.stop :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[: _CHECKSUM.start] + digest + data[_CHECKSUM.stop :]


def lying_state(draws: Draws, data: bytes) -> bytes:
    """Return a saved state that lies, in its bytes, its header or its tree.

    It has the right checksum more often than not, as one has that somebody changed on purpose.
    """
    changed = int(draws.integers(4))
    if changed == 0:
        return scratched(draws, data)
    if changed == 1:
        return sealed(scratched(draws, data))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__")
    if changed == 2:
        header, _ = mutated(draws, header)
    else:
        metadata["state"] = json.dumps(lie(draws, json.loads(metadata["state"])))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return sealed(len(text).to_bytes(8, "little") + text + data[end:])


def fuzz(count: int, make: Callable[[Draws], Mutant]) -> int:
    """Read mutants, each of draws of its own, and return how many were refused."""
    refused = 0
    for index in range(count):
        mutant = make(np.random.default_rng(index))
        try:
            mutant.read()
        except PslError as error:
            refused += 1
            text = str(error)
            text.encode()
            assert len(text) < 4100, f"mutant {index}: an error of {len(text)} characters"
            assert mutant.is_named_in(text), (index, mutant.fields, text)
        except Exception as error:
            raise AssertionError(f"mutant {index} of {mutant.fields}: {error!r}") from error
    return refused


def spellings(field: str) -> set[str]:
    """Return what an error may call a field or a tensor: as it is, escaped, or a part of it."""
    parts = {field, field.rpartition("/")[2], field.partition("|")[0]}
    parts |= {part.rpartition(".")[0] for part in parts}
    return {spelling for part in parts if part for spelling in (part, repr(part)[1:-1])}


def of_another_shape(draws: Draws, tensor: Tensor) -> Tensor:
    changes: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor[:-1] if tensor.dim() else tensor.reshape(1),
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor.reshape(1, 1),
        lambda: tensor.flatten(),
        lambda: tensor.unsqueeze(0),
        lambda: tensor.unsqueeze(-1),
        lambda: tensor.transpose(0, -1) if tensor.dim() else tensor,
        lambda: tensor.new_zeros(()),
        lambda: tensor.new_zeros(0),
        lambda: tensor.new_zeros((*tensor.shape[:1], 0)),
        lambda: tensor.new_zeros((2000, 3)),
    )
    return changes[int(draws.integers(len(changes)))]()


DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
NUMBERS: tuple[float, ...] = (
    *(torch.nan, torch.inf, -torch.inf, 1e300, -1e300, 1e38, 1e25),
    *(2.0**62, -(2.0**62), 0.0, -1.0, 1e-300),
)


def of_other_values(draws: Draws, tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    number = NUMBERS[int(draws.integers(len(NUMBERS)))]
    if tensor.is_floating_point():
        flat = changed.double().reshape(-1)
        flat[int(draws.integers(len(flat))) if draws.integers(2) else slice(None)] = number
        return flat.reshape(tensor.shape).to(tensor.dtype)
    whole = int(np.clip(np.nan_to_num(number), -(2.0**62), 2.0**62))
    return changed.long().fill_(whole).to(tensor.dtype)


def lying_tensors(
    draws: Draws, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """Return tensors of which one lies, and its names."""
    name = list(tensors)[int(draws.integers(len(tensors)))]
    known = spellings(name)
    match int(draws.integers(7)):
        case 0:
            return {key: each for key, each in tensors.items() if key != name}, known
        case 1:
            other = (name + "x", f"weights/{name}", f"moments/{name}", f"gradients/{name}")[
                int(draws.integers(4))
            ]
            renamed = {other if key == name else key: each for key, each in tensors.items()}
            return renamed, known
        case 2:
            dtype = DTYPES[int(draws.integers(len(DTYPES)))]
            return {**tensors, name: tensors[name].to(dtype)}, known
        case 3 | 4:
            return {**tensors, name: of_another_shape(draws, tensors[name])}, known
    return {**tensors, name: of_other_values(draws, tensors[name])}, known


@contextmanager
def within(most_bytes: int) -> Iterator[None]:
    """Fail if the process takes more memory than that, at any time in the block."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("only Linux says how much memory was taken at most")
    peak.write_text("5")
    before = _resident("VmRSS")
    yield
    taken = _resident("VmHWM") - before
    assert taken < most_bytes, f"{taken / 1e6:.0f} MB"


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) * 1024


class Fuzz:
    """The functions of this file, as a fixture can give them to the tests beside it."""

    mutant = Mutant
    lie = staticmethod(lie)
    mutated = staticmethod(mutated)
    scratched = staticmethod(scratched)
    sealed = staticmethod(sealed)
    lying_state = staticmethod(lying_state)
    spellings = staticmethod(spellings)
    lying_tensors = staticmethod(lying_tensors)
    run = staticmethod(fuzz)
    within = staticmethod(within)


@pytest.fixture
def fuzzing() -> type[Fuzz]:
    return Fuzz
