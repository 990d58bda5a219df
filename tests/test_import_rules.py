"""Who may import whom, read from the sources; see the table in the design."""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import flower_psl

ROOT = Path(__file__).parents[1]

# What each room may import besides itself. Rooms of one floor, client and server among
# them, never meet.
FLOOR_1 = {"sampling", "split", "storage", "wire", "telemetry"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    **{room: {"errors"} for room in FLOOR_1},
    "transport": {"errors", "wire"},
    "client": {"errors", "transport"} | FLOOR_1,
    "server": {"errors", "transport"} | FLOOR_1,
}
FLWR_FILES = {
    "flower_psl/wire/records.py",
    "flower_psl/client/client_cache.py",
    "flower_psl/client/split_client_app.py",
    "flower_psl/server/client_strategy_checks.py",
    "flower_psl/server/flower_aggregation.py",
    "flower_psl/server/flower_records.py",
    "flower_psl/server/flower_strategy_state.py",
    "flower_psl/server/start_only.py",
    "flower_psl/server/strategy.py",
    "flower_psl/transport/open_transport.py",
}
FLWR_FILES_OF_TYPES = {"flower_psl/server/run_in_process.py"}
FLWR_MODULES = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.mod",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
)
TOPS = ("apps", "simulations")


@dataclass(frozen=True)
class Import:
    """One imported name; `name` is None for a whole module."""

    module: str
    name: str | None
    line: int
    for_types: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(path: str, source: str) -> Iterator[Import]:
    """Yield all imports of a source, inside functions too, with absolute names."""
    tree = ast.parse(source)
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, id(node) in typed)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the folder of the file, a package's own file included.
            folder = Path(path).parts[:-1]
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, id(node) in typed)


def violations(path: str, source: str) -> list[str]:
    """Return, line by line, what a file imports and may not."""
    found = []
    for each in imports(path, source):
        rule = _flwr_rule(path, each) or _grpc_rule(path, each) or _room_rule(path, each)
        if rule:
            what = each.module if each.name is None else f"{each.module}.{each.name}"
            found.append(f"{path}:{each.line}: {what}: {rule}")
    return found


def _room(path: str) -> str:
    """Return the room of a file of the library, "" for its `__init__.py`."""
    return "" if path == "flower_psl/__init__.py" else Path(path).parts[1].removesuffix(".py")


def _flwr_rule(path: str, each: Import) -> str | None:
    if each.top != "flwr":
        return None
    if each.module not in FLWR_MODULES or each.name is None:
        return "only names of flwr's public modules"
    if each.name not in importlib.import_module(each.module).__all__:
        return "not in the module's __all__"
    if path.startswith(TOPS) or path in FLWR_FILES:
        return None
    if Path(path).match("flower_psl/transport/flower_*.py"):
        return None
    if path in FLWR_FILES_OF_TYPES and each.for_types:
        return None
    return "flwr is not imported here"


def _grpc_rule(path: str, each: Import) -> str | None:
    if each.top == "grpc" and not path.startswith("flower_psl/transport/"):
        return "grpc only in transport"
    return None


def _room_rule(path: str, each: Import) -> str | None:
    if path.startswith(TOPS):
        return _top_rule(path, each)
    if each.top in TOPS:
        return "nothing imports what uses the library"
    room = _room(path)
    if room == "sampling" and each.top in ("torch", "torchvision"):
        return "sampling is NumPy only"
    if each.top != "flower_psl":
        return None
    if room == "":
        return None if each.for_types else "public names are loaded on first use"
    parts = each.module.split(".")
    target = parts[1] if len(parts) > 1 else each.name
    if target not in ROOMS:
        return "inside the library, names come from their rooms"
    if target != room and target not in ROOMS[room]:
        return f"{room} does not know {target}"
    return None


def _top_rule(path: str, each: Import) -> str | None:
    if each.top in TOPS and each.top != Path(path).parts[0]:
        return "apps and simulations do not know each other"
    if each.top == "flower_psl" and (
        each.module != "flower_psl" or each.name not in flower_psl.__all__
    ):
        return "only public names of flower_psl"
    return None


def sources() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for folder in ("flower_psl", *TOPS)
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_what_it_may(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_room_has_its_rule() -> None:
    rooms = {_room(path) for path in sources() if path.startswith("flower_psl/")}
    assert rooms - {""} == set(ROOMS)


def test_the_files_that_may_import_flwr_exist_and_do() -> None:
    for path in FLWR_FILES | FLWR_FILES_OF_TYPES:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert any(each.top == "flwr" for each in imports(path, source)), path


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("flower_psl/errors.py", "from flower_psl.wire import Phase", "errors does not know wire"),
        ("flower_psl/wire/a.py", "from flower_psl.split import cut", "wire does not know split"),
        ("flower_psl/split/a.py", "import flower_psl.sampling", "split does not know sampling"),
        ("flower_psl/wire/a.py", "from ..split import cut", "wire does not know split"),
        ("flower_psl/wire/a.py", "from .. import split", "wire does not know split"),
        ("flower_psl/wire/a.py", "from flower_psl import split", "wire does not know split"),
        ("flower_psl/transport/a.py", "import flower_psl.split.cut", "does not know split"),
        ("flower_psl/client/a.py", "from flower_psl.server import x", "does not know server"),
        ("flower_psl/server/a.py", "from flower_psl.client import x", "does not know client"),
        ("flower_psl/server/a.py", "def f():\n  import flower_psl.client", "not know client"),
        ("flower_psl/server/a.py", "from flower_psl import cut", "names come from their rooms"),
        ("flower_psl/server/a.py", "import flower_psl", "names come from their rooms"),
        ("flower_psl/wire/a.py", "if TYPE_CHECKING:\n  import flower_psl.split", "not know split"),
        ("flower_psl/__init__.py", "from flower_psl.split import cut", "loaded on first use"),
        ("flower_psl/server/a.py", "import apps.image_classification", "nothing imports what"),
        ("flower_psl/sampling/a.py", "import torch", "NumPy only"),
        ("flower_psl/sampling/a.py", "from torch.utils import data", "NumPy only"),
        ("flower_psl/wire/a.py", "from flwr.app import Array", "flwr is not imported here"),
        ("flower_psl/transport/a.py", "from flwr.app import Array", "flwr is not imported here"),
        (
            "flower_psl/transport/stream.py",
            "from flwr.app import Array",
            "flwr is not imported here",
        ),
        ("flower_psl/server/a.py", "from flwr.app import Array", "flwr is not imported here"),
        (
            "flower_psl/server/run_in_process.py",
            "from flwr.app import ArrayRecord",
            "flwr is not imported here",
        ),
        ("flower_psl/wire/records.py", "import flwr", "only names of flwr's public modules"),
        ("flower_psl/wire/records.py", "import flwr.app", "only names of flwr's public modules"),
        ("flower_psl/wire/records.py", "from flwr.common import Array", "flwr's public modules"),
        ("flower_psl/wire/records.py", "from flwr.app import make", "not in the module's __all__"),
        ("apps/a/b.py", "from flwr.server import Driver", "flwr's public modules"),
        ("flower_psl/client/a.py", "import grpc", "grpc only in transport"),
        ("apps/a/b.py", "import grpc.aio", "grpc only in transport"),
        ("apps/a/b.py", "from flower_psl.split import cut", "only public names of flower_psl"),
        ("apps/a/b.py", "from flower_psl import telemetry", "only public names of flower_psl"),
        ("simulations/b.py", "import flower_psl", "only public names of flower_psl"),
        ("simulations/b.py", "from apps.a import b", "do not know each other"),
        ("apps/a/b.py", "import simulations", "do not know each other"),
    ],
)
def test_a_violation_is_found(path: str, source: str, rule: str) -> None:
    [line] = violations(path, f'"""Text."""\n{source}\n')
    assert line.startswith(f"{path}:")
    assert rule in line


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flower_psl/wire/a.py", "from flower_psl.errors import ProtocolError"),
        ("flower_psl/wire/a.py", "from . import step"),
        ("flower_psl/wire/a.py", "from .step import Phase"),
        ("flower_psl/transport/a.py", "from flower_psl.wire import records\nimport grpc"),
        ("flower_psl/transport/flower_x.py", "from flwr.serverapp import Grid"),
        ("flower_psl/transport/open_transport.py", "from flwr.serverapp import Grid"),
        ("flower_psl/server/a.py", "import torch\nfrom flower_psl.split import cut"),
        ("flower_psl/wire/records.py", "from flwr.app import Array, RecordDict"),
        (
            "flower_psl/server/run_in_process.py",
            "if TYPE_CHECKING:\n  from flwr.app import ArrayRecord",
        ),
        ("flower_psl/__init__.py", "if TYPE_CHECKING:\n  from flower_psl.split import cut"),
        (
            "apps/a/b.py",
            "from flower_psl import cut\nfrom .c import d\nfrom flwr.app import Array",
        ),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []
