"""The small app in a folder of its own, as `flwr run` takes it."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
name = "small"
version = "0.1.0"
license = { text = "Apache-2.0" }

[tool.flwr.app]
publisher = "flower-psl"
fab-include = ["flower_psl/**/*.py", "small_app.py", "LICENSE"]

[tool.flwr.app.components]
serverapp = "small_app:server"
clientapp = "small_app:client"

[tool.flwr.app.config]
num-rounds = 2
steps-per-round = 3
sync = "step"
client-strategy = ""
transport = "stream"
shared-memory = true
out = ""
"""


@pytest.fixture(scope="module")
def small_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    app = tmp_path_factory.mktemp("app")
    shutil.copytree(ROOT / "flower_psl", app / "flower_psl")
    for file in (ROOT / "LICENSE", Path(__file__).with_name("small_app.py")):
        shutil.copy(file, app)
    (app / "pyproject.toml").write_text(PROJECT)
    return app
