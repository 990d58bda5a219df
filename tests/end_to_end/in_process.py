"""The app's runs without Flower, to hold real ones against."""

import tomllib
from pathlib import Path

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp.strategy import Result

from apps.image_classification.client_app import client_fn
from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from apps.image_classification.models import initial_model
from apps.image_classification.split_learning import build_strategy
from flower_psl import run_in_process
from simulations.flower_federation import RunConfig

ROOT = Path(__file__).parents[2]


def train_in_process(changes: RunConfig, num_clients: int) -> Result:
    """Make the run that `flwr run` makes with these changes of the app's configuration."""
    defaults = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    run_config = defaults["config"] | changes
    config = AppConfig.from_run_config(run_config)
    clients = {
        key: client_fn(
            Context(
                run_id=1,
                # Not in the order of the keys, as Flower's are not.
                node_id=1000 - key,
                node_config={"partition-id": key, "num-partitions": num_clients},
                state=RecordDict(),
                run_config=run_config,
            )
        )
        for key in range(num_clients)
    }
    model = initial_model(config.model, load_images(config.data).spec, config.seed)
    return run_in_process(
        build_strategy(config, model),
        clients,
        ArrayRecord(model.state_dict()),
        num_rounds=config.num_server_rounds,
    )
