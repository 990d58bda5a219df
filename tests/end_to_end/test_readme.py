"""What the README shows is what there is."""

import re
import tomllib
from pathlib import Path

import pytest

from simulations.flower_simulation import FlowerSimulation

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(blocks("python")[0])
    (tmp_path / "pyproject.toml").write_text(blocks("toml")[0])
    with FlowerSimulation(tmp_path) as simulation:
        status, log = simulation.run(
            {}, num_supernodes=4, num_actors=1, timeout_s=240.0, quiet=True
        )
    assert status == "finished:completed", log
    accuracies = [float(value) for value in re.findall(r"test accuracy ([\d.]+)", log)]
    assert len(accuracies) == 4
    assert accuracies[0] < 0.3 < 0.8 < accuracies[-1]


def test_the_table_of_keys_is_that_of_the_app() -> None:
    table = README.partition("<!-- config table")[2].partition("<!-- end of config table")[0]
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| `(.*?)` \|", table, re.MULTILINE))
    config = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]["config"]
    shown = {key: tomllib.loads(f"value = {value}")["value"] for key, value in rows.items()}
    assert shown == config


def test_the_folders_it_names_exist() -> None:
    named = re.findall(r"^\| `((?:flower_psl|apps|simulations)[a-z_/]*)` \|", README, re.MULTILINE)
    assert len(named) >= 9
    assert all((ROOT / folder).is_dir() for folder in named)


def test_the_bundle_holds_the_library_and_the_app_only(tmp_path: Path) -> None:
    include = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]["fab-include"]
    assert include == ["flower_psl/**/*.py", "apps/**/*.py", "LICENSE"]
