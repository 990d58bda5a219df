import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flower_psl


def type_checking_names() -> dict[str, str]:
    """Return each name of the TYPE_CHECKING block and the module it is imported from."""
    tree = ast.parse(Path(str(flower_psl.__file__)).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: str(node.module).removeprefix("flower_psl.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_three_lists_of_the_public_names_agree() -> None:
    assert type_checking_names() == flower_psl._MODULES
    assert flower_psl.__all__ == sorted(flower_psl._MODULES)
    assert dir(flower_psl) == flower_psl.__all__


@pytest.mark.parametrize("name", flower_psl.__all__)
def test_a_public_name_resolves_to_what_it_names(name: str) -> None:
    assert getattr(flower_psl, name).__name__ == name
    assert getattr(flower_psl, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flower_psl' has no attribute 'Unknown'"):
        flower_psl.Unknown  # noqa: B018


def loaded(statement: str, *modules: str) -> set[str]:
    """Return which of the modules a new process has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*set({modules!r}) & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import flower_psl", {"torch", "flwr", "numpy", "matplotlib"}),
        ("from flower_psl import GlobalSampler, BatchSchedule", {"torch", "flwr"}),
        ("from flower_psl import SplitClient, cut", {"flwr", "flower_psl.server", "matplotlib"}),
        ("from flower_psl import SplitClientApp", {"flower_psl.server", "matplotlib"}),
        ("from flower_psl import ParallelSplitLearning", {"flower_psl.client"}),
    ],
)
def test_a_name_loads_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    assert loaded(statement, *absent, "flower_psl") == {"flower_psl"}
