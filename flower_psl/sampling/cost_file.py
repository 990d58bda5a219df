"""Reading the costs of clients from a file."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flower_psl.errors import ConfigError

_SECONDS = ("seconds_per_example", "seconds_per_participation")
_N = TypeVar("_N", int, float)
_Row = tuple[str, object, dict[str, object]]  # where it stands, client key, columns


def read_costs(path: Path) -> dict[int, tuple[float, float]]:
    """Return client key to (seconds per example, seconds per participation).

    Parameters
    ----------
    path : Path
        A ``.csv`` or ``.json`` file; see `CostModel.from_file`.

    Raises
    ------
    ConfigError
        If the file cannot be read, lacks a column, or has a client twice or something that
        is no number.
    """
    if path.suffix not in _READERS:
        raise ConfigError(
            f"{path} ends in {path.suffix!r}; costs are read from {' or '.join(_READERS)} "
            "files: save them as one of those"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the costs in {path} cannot be read ({error}); name a readable text file"
        ) from error
    costs: dict[int, tuple[float, float]] = {}
    for where, client, columns in _READERS[path.suffix](path, text):
        key = _number(where, "client", client, int)
        if key in costs:
            raise ConfigError(f"{where}: client {key} is there twice; each has one cost: keep one")
        tau, fixed = (_number(where, name, columns.get(name), float) for name in _SECONDS)
        costs[key] = (tau, fixed)
    return costs


def _read_csv(path: Path, text: str) -> Iterator[_Row]:
    for number, row in enumerate(csv.DictReader(text.splitlines()), 2):
        yield f"{path}, line {number}", row.get("client"), dict(row)


def _read_json(path: Path, text: str) -> Iterator[_Row]:
    try:
        content = json.loads(text, object_pairs_hook=list)  # a dict would hide clients given twice
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON ({error}); correct it") from error
    for client, columns in _pairs(str(path), content):
        where = f"{path}, client {client}"
        yield where, client, dict(_pairs(where, columns))


def _pairs(where: str, content: object) -> Iterable[tuple[str, object]]:
    if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
        raise ConfigError(
            f'{where}: {content!r} is no JSON object; write {{"0": {{"seconds_per_example": 0.01, '
            '"seconds_per_participation": 0.2}, ...}'
        )
    return content


_READERS = {".csv": _read_csv, ".json": _read_json}


def _number(where: str, name: str, value: Any, kind: Callable[[Any], _N]) -> _N:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {name} is {value!r}; the columns client, {' and '.join(_SECONDS)} hold "
            "numbers, that of a client a whole one: fill it in"
        ) from error
