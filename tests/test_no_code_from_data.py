"""Nothing that the library or its apps read can bring code with it, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("flower_psl", "apps") for path in (ROOT / room).rglob("*.py"))

# Modules that run what they read, and functions that do, or can be told to.
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
BUILT_IN = {"__import__", "compile", "eval", "exec"}
# A torch.load with weights_only would be safe; there is none, so none has to be looked at.
METHODS = {"allow_pickle", "import_module", "load_module", "trust_remote_code", "unsafe_load"}
TORCH = {"torch.load", "torch.save", "torch.hub", "torch.jit.load", "torch.package"}
# Imports its own modules by the names in a table of its own.
BY_NAME = {"flower_psl/__init__.py": {"import_module"}}


def dangers(source: str) -> Iterator[str]:
    """Yield what in a source could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES:
                    yield module
                yield from (each.name for each in names if each.name in METHODS)
            case ast.Call(func=ast.Name(id=name)) if name in BUILT_IN | METHODS:
                yield name
            case ast.Attribute(attr=name) if name in METHODS or ast.unparse(node) in TORCH:
                yield ast.unparse(node)
            case ast.keyword(arg=str(name)) if name in METHODS:
                yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_run_what_it_reads(path: Path) -> None:
    allowed = BY_NAME.get(str(path.relative_to(ROOT)), set())
    assert set(dangers(path.read_text(encoding="utf-8"))) <= allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("import joblib.numpy_pickle as x", "joblib.numpy_pickle"),
        ("from importlib import import_module", "import_module"),
        ("eval('1')", "eval"),
        ("__import__(name)", "__import__"),
        ("torch.load(file, weights_only=True)", "torch.load"),
        ("np.load(file, allow_pickle=True)", "allow_pickle"),
        ("load_dataset(name, trust_remote_code=True)", "trust_remote_code"),
        ("importlib.import_module(name)", "importlib.import_module"),
    ],
)
def test_what_could_is_found(source: str, found: str) -> None:
    assert list(dangers(source)) == [found]


def test_evaluation_mode_is_no_danger() -> None:
    assert list(dangers("model.eval(); re.compile('a')")) == []
