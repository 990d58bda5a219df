"""The limits that docs/security.md states are those of the code."""

from pathlib import Path

import pytest

from flower_psl import errors
from flower_psl.split import batch_norm
from flower_psl.transport import (
    memory_offers,
    stream_server,
    stream_settings,
    stream_ticket,
)
from flower_psl.wire import describe, json_text, parts, tensors

TEXT = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("limit", "value", "stated"),
    [
        (stream_server._SPARE_CONNECTIONS, 256, "the nodes and 256 more"),
        (stream_server._STRANGERS_PATIENCE_MS, 5000, "5 s for the handshake, 5 s to open a"),
        (stream_server._LONGEST_HELLO_BYTES, 1024, "1 KB, in metadata"),
        (stream_settings.StreamSettings().max_frame_bytes, 10**9, "1 GB unless set"),
        (memory_offers.TOTAL_BYTES, 2**30, "1.07 GB for all of them"),
        (memory_offers.LONGEST_BYTES, 2**26, "67.1 MB a node and direction"),
        (stream_ticket.LARGEST_FRAME_BYTES, 2**31 - 1, "below 2^31"),
        (json_text.LONGEST_TEXT_BYTES, 10**6, "10^6 bytes each"),
        (len(tensors._DTYPES), 10, "10 dtypes"),
        (tensors._MOST_DIMENSIONS, 16, "at most 16 sizes"),
        (describe._MOST_EXAMPLES, 10**8, "0 to 10^8, in training and test data"),
        (parts._LONGEST_S, 1e7, "0 to 10^7, finite"),
        (batch_norm._MOST_CALLS, 1000, "1000 calls of a layer"),
        (batch_norm._MOST_POSITIONS, 2**40, "2^40 positions"),
        (sum(errors._KEPT_CHARACTERS), 4000, "4000 characters"),
    ],
)
def test_a_limit_is_what_the_docs_say(limit: float, value: float, stated: str) -> None:
    assert limit == value
    assert stated in TEXT
