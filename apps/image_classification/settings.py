"""Settings: dataclass fields that carry the rule their value has to keep.

A settings class is a frozen, keyword-only dataclass whose fields are made by `setting`.
Its keys in a run configuration are the names of its fields in kebab-case.
"""

import difflib
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import UserConfigValue

from flower_psl import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the value of a setting may be; a bound that is None does not bind."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: Collection[str] | None = None


def setting(default: UserConfigValue, **rule: Any) -> Any:
    """Return a dataclass field with this default whose value has to keep ``Rule(**rule)``."""
    return field(default=default, metadata={"rule": Rule(**rule)})


def settings_of(settings_class: type["DataclassInstance"]) -> dict[str, Field[Any]]:
    """Return the settings of a class: its fields that have a rule, by their key."""
    return {
        item.name.replace("_", "-"): item
        for item in fields(settings_class)
        if "rule" in item.metadata
    }


def parse_settings(
    settings_class: type[S], values: Mapping[str, UserConfigValue], **others: Any
) -> S:
    """Build a settings class from a run configuration; a key that is absent has its default.

    Parameters
    ----------
    settings_class : type
        A settings class.
    values : Mapping[str, bool | float | int | str]
        The run configuration. Keys of other settings classes are left alone.
    **others
        The fields of the class that are no settings.

    Raises
    ------
    ConfigError
        If a value has another type than its default (an int is accepted for a float).
    """
    known = settings_of(settings_class)
    given = {
        item.name: _as_type_of(item.default, key, values[key])
        for key, item in known.items()
        if key in values
    }
    return settings_class(**given, **others)


def check_settings(settings: "DataclassInstance") -> None:
    """Check every setting against its rule.

    Raises
    ------
    ConfigError
        If a value breaks its rule; the message has the key, the value and the rule.
    """
    for key, item in settings_of(type(settings)).items():
        value, rule = getattr(settings, item.name), item.metadata["rule"]
        if rule.one_of is not None:
            check_choice(key, value, rule.one_of)
        elif isinstance(value, int | float):
            _check_range(key, value, rule)


def check_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Check that a value is one of the choices, and name them if it is not.

    Raises
    ------
    ConfigError
        If the value is none of the choices.
    """
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    raise ConfigError(
        f"{key} = {value!r} does not exist{hint} Choose one of: {', '.join(choices)}."
    )


def _as_type_of(default: Any, key: str, value: UserConfigValue) -> UserConfigValue:
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"{key} = {value!r} is of type {type(value).__name__}, but {key} has to be of type "
            f"{wanted.__name__}; write it like the default, {key} = {_as_toml(default)}."
        )
    return value


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _check_range(key: str, value: float, rule: Rule) -> None:
    broken = [
        f"{words} {bound:g}"
        for words, bound, kept in (
            ("at least", rule.at_least, operator.ge),
            ("above", rule.above, operator.gt),
            ("at most", rule.at_most, operator.le),
            ("below", rule.below, operator.lt),
        )
        if bound is not None and not kept(value, bound)
    ]
    if not math.isfinite(value):
        broken = ["a finite number"]
    if broken:
        raise ConfigError(
            f"{key} = {value!r} is out of range: it has to be {' and '.join(broken)}."
        )
