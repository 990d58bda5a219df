"""An experiment's settings, as a dataclass that is also its command line."""

import argparse
import types
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from flower_psl import ConfigError

Settings = TypeVar("Settings")

_NOT_GIVEN = object()


def option(default: Any, help: str, *, quick: Any = _NOT_GIVEN) -> Any:
    """Declare a field that is an option of the command line too.

    Parameters
    ----------
    default : object
        The value unless given. A tuple is written with commas: ``--clients 32,128``.
    help : str
        One line.
    quick : object, optional
        The value with ``--quick``, unless given.
    """
    metadata = {"help": help} | ({} if quick is _NOT_GIVEN else {"quick": quick})
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every experiment is told; `out` is the folder of its results."""

    out: Path
    workers: int = option(1, "processes, of one torch thread each")

    def __post_init__(self) -> None:
        """Refuse values out of range, before any work starts."""
        check_at_least("workers", self.workers, 1)


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below its least value.

    Raises
    ------
    ConfigError
        If it is, or is no number at all.
    """
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more: give a larger one")


def check_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def check_all(name: str, values: Sequence[Any], holds: Callable[[Any], bool], rule: str) -> None:
    """Refuse an empty list, one with duplicates, and one with a value that breaks the rule.

    Raises
    ------
    ConfigError
        Naming the first value that does.
    """
    if not values:
        raise ConfigError(f"{name} is empty; give one or more, with commas between them")
    for place, value in enumerate(values):
        if not holds(value):
            raise ConfigError(f"{name} has {value!r}; each must be {rule}: change that one")
        if value in values[:place]:
            raise ConfigError(f"{name} has {value!r} twice; give each once")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors take one line: what is wrong, and where help is."""

    def error(self, message: str) -> NoReturn:
        """Print the error and end with exit code 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_options(parser: argparse.ArgumentParser, settings: type[Any], out: Path) -> None:
    """Give a parser the options that a settings class declares, ``--quick`` and ``--out``.

    Parameters
    ----------
    parser : ArgumentParser
        It is changed.
    settings : type
        A dataclass whose fields, but for `out`, were made by `option`.
    out : Path
        The default of ``--out``.
    """
    parser.add_argument("--quick", action="store_true", help="a small form, of minutes at most")
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="FOLDER",
        help=f"results; a run that was stopped goes on there (default: {out})",
    )
    hints = get_type_hints(settings)
    for each in _options(settings):
        shown = f"default: {_written(each.default)}"
        if "quick" in each.metadata:
            shown += f"; quick: {_written(each.metadata['quick'])}"
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=_reader(hints[each.name]),
            default=_NOT_GIVEN,
            metavar=each.name.upper(),
            help=f"{each.metadata['help'].replace('%', '%%')} ({shown})",
        )


def read_settings(arguments: argparse.Namespace, settings: type[Settings]) -> Settings:
    """Build the settings of what the command line gave.

    Parameters
    ----------
    arguments : Namespace
        What a parser with `add_options` made.
    settings : type
        The class.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """
    values = {"out": arguments.out}
    for each in _options(settings):
        given = getattr(arguments, each.name)
        if given is not _NOT_GIVEN:
            values[each.name] = given
        elif arguments.quick and "quick" in each.metadata:
            values[each.name] = each.metadata["quick"]
    return settings(**values)


def _options(settings: type[Any]) -> list["Field[Any]"]:
    return [each for each in fields(settings) if each.name != "out"]


def _reader(hint: Any) -> Callable[[str], Any]:
    """Return what turns a word of the command line into a value of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        [hint] = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is not tuple:
        reader: Callable[[str], Any] = hint
        return reader
    kind = get_args(hint)[0]

    def read(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    read.__name__ = f"list of {kind.__name__}"
    return read


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
