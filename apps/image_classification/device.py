"""One node: its configuration, its data, and what it does with a whole model."""

from collections.abc import Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, UserConfigValue
from torch import nn
from torch.utils.data import TensorDataset

from flower_psl import ConfigError

from .config import AppConfig
from .data import divided, held_out, load_images
from .evaluation import evaluate
from .models import build_model
from .whole_model import Turn, local_batch_size, train_whole


class Device:
    """A node's part of the data.

    Parameters
    ----------
    context : Context
        Its run config is that of `AppConfig`; its node config has `partition-id` and
        `num-partitions`, which Flower's simulation sets by itself.

    Attributes
    ----------
    config : AppConfig
    key : int
        Whose data these are.
    images : ImageData
        All images, of which the device trains on its own only.
    train_set, test_set : TensorDataset
        Its own; the test set is what it has held out, none unless devices evaluate.

    Raises
    ------
    ConfigError
        If a configuration value breaks its rule, or the data do not fit the configuration.
    """

    def __init__(self, context: Context) -> None:
        self.config = AppConfig.from_run_config(context.run_config)
        self.key, self._num_devices = partition_of(context.node_config)
        if self.config.torch_num_threads:
            torch.set_num_threads(self.config.torch_num_threads)
        self.images = load_images(self.config.data)
        examples = self.images.partition(self.key, self._num_devices)
        self.train_set, self.test_set = (
            held_out(examples)
            if self.config.fraction_evaluate
            else divided(examples, len(examples))
        )

    def model(self, arrays: ArrayRecord) -> nn.Module:
        """Return the whole model with these arrays."""
        model = build_model(self.config.model, self.images.spec).to(self.config.device)
        model.load_state_dict(arrays.to_torch_state_dict())
        return model

    def train(self, model: nn.Module, message: Message) -> MetricRecord:
        """Train a model on the device's data, as a message tells, and return loss and weight.

        Its ConfigRecord ``config`` has ``server-round``, ``proximal-mu`` with FedProx, and
        ``seed`` if it is not that of the run configuration.
        """
        told = message.content.config_records.get("config", ConfigRecord())
        turn = Turn(
            seed=cast(int, told.get("seed", self.config.seed)),
            server_round=cast(int, told.get("server-round", 1)),
            client_key=self.key,
        )
        loss = train_whole(
            model,
            self.train_set,
            self.config,
            turn,
            batch_size=local_batch_size(self.config, self._num_devices),
            proximal_mu=cast(float, told.get("proximal-mu", 0.0)),
        )
        return MetricRecord({"loss": loss, "num-examples": len(self.train_set)})

    def evaluate(self, model: nn.Module, examples: TensorDataset) -> MetricRecord:
        """Evaluate a model: ``accuracy``, ``loss`` and ``num-examples``, which may be 0."""
        result = evaluate(
            model,
            examples,
            batch_size=self.config.evaluate_batch_size,
            device=self.config.device,
        )
        return result.to_metrics()


def partition_of(node_config: Mapping[str, UserConfigValue]) -> tuple[int, int]:
    """Return a node's partition and the number of partitions.

    Raises
    ------
    ConfigError
        If the node config does not have both, as whole numbers.
    """
    values = [node_config.get(key) for key in ("partition-id", "num-partitions")]
    match values:
        case [int(partition_id), int(num_partitions)]:
            return partition_id, num_partitions
    raise ConfigError(
        f"the node config {dict(node_config)!r} has to have the whole numbers partition-id and "
        "num-partitions, which say whose data this node has; start the SuperNode with "
        '--node-config "partition-id=0 num-partitions=2", for example.'
    )
