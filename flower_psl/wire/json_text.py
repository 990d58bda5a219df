"""JSON objects as text, of a length that reading can bear.

A few bytes of JSON can become a hundred bytes of Python objects, so what a frame may hold as
tensors, which stay what they are, would be far too much as text.
"""

import json
from collections.abc import Mapping

from flower_psl.errors import ProtocolError

# Room for a table of some ten thousand tensors.
LONGEST_TEXT_BYTES = 1_000_000
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def to_json(values: Mapping[str, object], what: str) -> str:
    """Return an object as text.

    Parameters
    ----------
    values : mapping
        What JSON can hold.
    what : str
        What it is, for the message.

    Raises
    ------
    ProtocolError
        If the other side would refuse it as too long.
    """
    text = _ENCODER.encode(values)
    _check_length(len(text), what)  # in ASCII, a character is a byte
    return text


def from_json(text: str | bytes | memoryview, what: str) -> dict[str, object]:
    """Return the object of some text.

    Raises
    ------
    ProtocolError
        If it is too long, no JSON, or not an object.
    """
    _check_length(len(text), what)
    try:
        values = json.loads(text if isinstance(text, str) else str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} are no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ProtocolError(f"{what} are a {type(values).__name__}, not an object")
    return values


def _check_length(length: int, what: str) -> None:
    if length > LONGEST_TEXT_BYTES:
        raise ProtocolError(
            f"{what} are {length} bytes of JSON; at most {LONGEST_TEXT_BYTES} are read, enough "
            "for the names and shapes of some ten thousand tensors. Put fewer of them in front "
            "of the cut."
        )
