from collections.abc import Callable
from dataclasses import dataclass

import pytest

from apps.image_classification.settings import (
    check_choice,
    check_settings,
    parse_settings,
    setting,
    settings_of,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """Settings with one rule of every kind."""

    batch_size: int = setting(8, at_least=1)
    rate: float = setting(0.5, above=0.0, at_most=1.0)
    part: float = setting(0.0, at_least=0.0, below=1.0)
    fast: bool = setting(False)
    colour: str = setting("red", one_of=("red", "green"))
    other: int = 0

    def __post_init__(self) -> None:
        check_settings(self)


def test_keys_are_field_names_in_kebab_case() -> None:
    assert list(settings_of(Example)) == ["batch-size", "rate", "part", "fast", "colour"]


def test_absent_keys_have_their_defaults_and_others_are_left_alone() -> None:
    values: dict[str, bool | float | int | str] = {"batch-size": 4, "unrelated": "x"}
    assert parse_settings(Example, values, other=3) == Example(batch_size=4, other=3)


def test_an_int_is_accepted_for_a_float() -> None:
    rate = parse_settings(Example, {"rate": 1}).rate
    assert rate == 1.0
    assert type(rate) is float


@pytest.mark.parametrize(
    ("key", "value", "given", "wanted", "default"),
    [
        ("batch-size", 4.0, "float", "int", "batch-size = 8"),
        ("batch-size", True, "bool", "int", "batch-size = 8"),
        ("rate", "fast", "str", "float", "rate = 0.5"),
        ("rate", True, "bool", "float", "rate = 0.5"),
        ("fast", 1, "int", "bool", "fast = false"),
        ("colour", 1, "int", "str", 'colour = "red"'),
    ],
)
def test_wrong_types_are_refused(
    refusal: Callable[..., str], key: str, value: object, given: str, wanted: str, default: str
) -> None:
    text = refusal(parse_settings, Example, {key: value})
    assert f"{key} = {value!r} is of type {given}" in text
    assert f"has to be of type {wanted}" in text
    assert default in text


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("batch-size", 0, "at least 1"),
        ("rate", 0.0, "above 0"),
        ("rate", 1.5, "at most 1"),
        ("part", -0.1, "at least 0"),
        ("part", 1.0, "below 1"),
        ("part", float("nan"), "a finite number"),
        ("rate", float("inf"), "a finite number"),
    ],
)
def test_values_out_of_range_are_refused(
    refusal: Callable[..., str], key: str, value: float, rule: str
) -> None:
    text = refusal(parse_settings, Example, {key: value})
    assert f"{key} = {value!r} is out of range: it has to be {rule}." in text


def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(
    refusal: Callable[..., str],
) -> None:
    text = refusal(parse_settings, Example, {"colour": "gren"})
    assert "colour = 'gren' does not exist; did you mean 'green'?" in text
    assert "Choose one of: red, green." in text


def test_a_choice_like_no_other_has_no_hint(refusal: Callable[..., str]) -> None:
    text = refusal(check_choice, "colour", "xyz", ("red", "green"))
    assert text == "colour = 'xyz' does not exist. Choose one of: red, green."
