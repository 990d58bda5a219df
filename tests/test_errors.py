import pickle

import pytest

from flower_psl import errors
from flower_psl.errors import PslError, WaitError, presentable

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PslError)
]


@pytest.mark.parametrize("text", ["", "client 3: é, 漢字", "one line"])
def test_a_usual_message_stays_as_it_is(text: str) -> None:
    assert str(PslError(text)) == presentable(text) == text


def test_of_a_long_message_beginning_and_end_are_kept() -> None:
    text = "value" + "x" * 10_000_000 + "remedy"
    shown = presentable(text)
    assert shown.startswith("valuexxx") and shown.endswith("xxxremedy")
    assert "x [9996011 characters] x" in shown
    assert len(shown) < 4100
    assert presentable("x" * 4000) == "x" * 4000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),  # clears a terminal
        ("\r\x00\x7f", r"\r\x00\x7f"),
        ("\u202e\u200b\u2028", r"\u202e\u200b\u2028"),  # turns text round; unseen; a line's end
        ("\ud800", r"\ud800"),
        ("a\nINFO: all is well", "a\n    INFO: all is well"),
        ("a\n\tb", "a\n    \tb"),
    ],
)
def test_what_would_change_a_log_is_made_visible(text: str, shown: str) -> None:
    assert presentable(text) == shown
    str(PslError(text)).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_is_presentable_and_survives_a_pickle(kind: type[PslError]) -> None:
    error = kind("\x07" + "x" * 5000)
    assert len(str(error)) < 4100
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again).startswith(r"\x07xxx")


def test_a_time_out_is_still_one_for_the_standard_library() -> None:
    assert isinstance(WaitError("late"), TimeoutError)
    assert WaitError("late").args == ("late",)
