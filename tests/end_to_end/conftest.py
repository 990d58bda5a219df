"""The small app: in a folder of its own, as `flwr run` takes it, and without Flower."""

import shutil
import tomllib
from pathlib import Path

import pytest
from flwr.app import ArrayRecord
from torch import Tensor

from flower_psl.transport import InProcessTransport
from simulations.flower_federation import RunConfig
from tests.end_to_end.small_app import NUM_CLIENTS, build_model, make_client, make_strategy

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


def train_small_app(changes: RunConfig) -> dict[str, Tensor]:
    """Make the run that `flwr run` makes with these changes of the app's configuration."""
    config = {**tomllib.loads(PROJECT)["tool"]["flwr"]["app"]["config"], **changes}
    # `run_in_process` would refuse a strategy of Flower.
    result = make_strategy(config).run_over(
        InProcessTransport({key: make_client(key) for key in range(NUM_CLIENTS)}),
        ArrayRecord(build_model().state_dict()),
        num_rounds=config["num-rounds"],
        timeout=float("inf"),
        evaluate_fn=None,
        min_nodes=NUM_CLIENTS,
    )
    return dict(result.arrays.to_torch_state_dict())
