from dataclasses import dataclass
from pathlib import Path

import pytest

from flower_psl import ConfigError
from simulations.options import (
    OneLineParser,
    RunSettings,
    add_options,
    check_all,
    check_at_least,
    check_one_of,
    option,
    read_settings,
)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    sizes: tuple[int, ...] = option((1, 2), "sizes", quick=(1,))
    rate: float = option(0.5, "a rate in %")
    data_path: str = option("here", "a path", quick="there")


def parse(*words: str) -> Settings:
    parser = OneLineParser(prog="test")
    add_options(parser, Settings, Path("runs/test"))
    return read_settings(parser.parse_args(words), Settings)


def test_defaults() -> None:
    assert parse() == Settings(
        out=Path("runs/test"), sizes=(1, 2), rate=0.5, data_path="here", workers=1
    )


def test_quick_values_give_way_to_given_ones() -> None:
    assert parse("--quick") == Settings(out=Path("runs/test"), sizes=(1,), data_path="there")
    given = parse("--quick", "--sizes", "3, 4", "--out", "x", "--rate", "1", "--workers", "2")
    assert given == Settings(out=Path("x"), sizes=(3, 4), rate=1.0, data_path="there", workers=2)


def test_help_shows_both_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "sizes (default: 1,2; quick: 1)" in text
    assert "a rate in % (default: 0.5)" in text
    assert "--data-path" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--sizes", "1,x"], ["--sizes", "'1,x'"]),
        (["--rate", "fast"], ["--rate", "'fast'"]),
        (["--speed", "1"], ["--speed"]),
    ],
)
def test_an_error_takes_one_line(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(part in line for part in (*parts, "test --help"))


def test_checks_quote_value_and_rule() -> None:
    with pytest.raises(ConfigError, match="seeds is 0; it must be 1 or more: give a larger one"):
        check_at_least("seeds", 0, 1)
    with pytest.raises(ConfigError, match="rate is nan; it must be 0 or more"):
        check_at_least("rate", float("nan"), 0)
    with pytest.raises(ConfigError, match="model is 'a'; it must be one of b, c"):
        check_one_of("model", "a", ("b", "c"))
    with pytest.raises(ConfigError, match="sizes is empty; give one or more"):
        check_all("sizes", (), bool, "true")
    with pytest.raises(ConfigError, match="sizes has 0; each must be above 0: change that one"):
        check_all("sizes", (1, 0), lambda size: size > 0, "above 0")
    with pytest.raises(ConfigError, match="sizes has 1 twice; give each once"):
        check_all("sizes", (1, 2, 1), lambda size: size > 0, "above 0")
