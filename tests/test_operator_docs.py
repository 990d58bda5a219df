"""What the documentation says that an operator will read in the log is what the code says."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ("docs/failures.md", "docs/checkpoints.md")
# What is put into a text, or left out of a quotation of it.
_GAP = re.compile(
    r"\.\.\.|\d[\d.e+]*|\(\)|[(){}\[\]'\"]|%\w|\b(?:Krum|OSError|torch)\b|REASON|\bN\b|\bK\b"
)


@cache
def texts() -> str:
    """Return every string of the library, f-strings with their gaps, a line each."""
    found = []
    for path in sorted((ROOT / "flower_psl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "..." for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(_GAP.sub("...", text) for text in found)


def quoted_lines() -> list[tuple[str, str]]:
    """Return what the first cells of the tables of log lines quote, with its document."""
    quotes = []
    for name in DOCS:
        is_log = False
        for line in (ROOT / name).read_text().splitlines():
            first = line.split("|")[1].strip() if line.startswith("|") else ""
            is_log = bool(first) and (is_log or first in ("log", "message"))
            if is_log:
                quotes += [(name, quote) for quote in re.findall(r"`([^`]+)`", first)]
    return quotes


@pytest.mark.parametrize(("name", "quote"), quoted_lines())
def test_a_line_that_is_quoted_is_in_the_code(name: str, quote: str) -> None:
    pairs = [
        " ".join(pair)
        for piece in _GAP.split(quote)
        for pair in pairwise(piece.strip(" :;,.").split())
    ]
    if len(pairs) < 2:
        pairs = quote.split()
    # Not all of them: a word of the quotation may be what the code puts in.
    found = [pair for pair in pairs if pair in texts()]
    assert 2 * len(found) >= len(pairs), f"{name}: of {quote!r} the code has {found} only"


def test_there_are_such_lines() -> None:
    assert {name for name, _ in quoted_lines()} == set(DOCS)
