"""The device's side: its partition of the data, and the model in front of the cut."""

from collections.abc import Mapping

import torch
from flwr.app import Context, UserConfigValue

from flower_psl import ConfigError, SplitClient, SplitClientApp, cut

from .config import AppConfig
from .data import held_out, load_images
from .models import cut_of, meta_model


def client_fn(context: Context) -> SplitClient:
    """Build the client of one node.

    Parameters
    ----------
    context : Context
        Its run config is that of `AppConfig`; its node config has `partition-id` and
        `num-partitions`, which Flower's simulation sets by itself.

    Returns
    -------
    SplitClient
        Its segment is on the meta device: weights come with every request, and those of
        the server's segment never reach the device.

    Raises
    ------
    ConfigError
        If a configuration value breaks its rule, or the data do not fit the configuration.
    """
    config = AppConfig.from_run_config(context.run_config)
    partition_id, num_partitions = partition_of(context.node_config)
    if config.torch_num_threads:
        torch.set_num_threads(config.torch_num_threads)
    images = load_images(config.data)
    examples = images.partition(partition_id, num_partitions)
    model = meta_model(config.model, images.spec)
    segment = cut(model, at=cut_of(model, config.model, config.cut)).client
    if not config.fraction_evaluate:
        return SplitClient(segment, train_set=examples, device=config.device)
    train_set, test_set = held_out(examples)
    return SplitClient(segment, train_set=train_set, test_set=test_set, device=config.device)


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


app = SplitClientApp(client_fn)
