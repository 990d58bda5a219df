"""How the training split is dealt out to the clients: flwr-datasets' partitioners, by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)

from flower_psl import ConfigError

if TYPE_CHECKING:
    from .config import DataConfig


def _iid(config: "DataConfig", num_partitions: int, column: str) -> Partitioner:
    # It takes no seed: it deals out the split in the order it has, which is shuffled.
    return IidPartitioner(num_partitions)


def _dirichlet(config: "DataConfig", num_partitions: int, column: str) -> Partitioner:
    return DirichletPartitioner(
        num_partitions,
        partition_by=column,
        alpha=config.dirichlet_alpha,
        min_partition_size=config.min_partition_size,
        seed=config.seed,
    )


def _pathological(config: "DataConfig", num_partitions: int, column: str) -> Partitioner:
    return PathologicalPartitioner(
        num_partitions,
        partition_by=column,
        num_classes_per_partition=config.num_classes_per_partition,
        # The first class in turn, so that with enough clients no class is left out.
        class_assignment_mode="first-deterministic",
        seed=config.seed,
    )


def _shard(config: "DataConfig", num_partitions: int, column: str) -> Partitioner:
    return ShardPartitioner(
        num_partitions,
        partition_by=column,
        num_shards_per_partition=config.num_shards_per_partition or None,
        shard_size=config.shard_size or None,
        seed=config.seed,
    )


def _natural_id(config: "DataConfig", num_partitions: int, column: str) -> Partitioner:
    return NaturalIdPartitioner(partition_by=column)


PARTITIONERS: dict[str, Callable[["DataConfig", int, str], Partitioner]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "shard": _shard,
    "natural-id": _natural_id,
}


def partitioned(
    train: Dataset, config: "DataConfig", *, num_partitions: int, label_column: str
) -> Partitioner:
    """Deal out a training split.

    Parameters
    ----------
    train : Dataset
        The training split, in a random but fixed order.
    config : DataConfig
        Names the partitioner and what it needs.
    num_partitions : int
        How many clients there are.
    label_column : str
        What to partition by, unless the configuration names a column.

    Returns
    -------
    Partitioner
        Has done its work: loading a partition from it does not fail.

    Raises
    ------
    ConfigError
        If there are more clients than examples (or natural ids), if the column to partition
        by does not exist, or if the partitioner cannot do what the configuration asks of it.
    """
    if num_partitions > len(train):
        raise ConfigError(
            f"{num_partitions} clients cannot share {len(train)} training examples: every client "
            "needs one at least; run fewer clients, or raise max-train-examples."
        )
    column = config.partition_by or label_column
    if column not in train.column_names:
        raise ConfigError(
            f"partition-by = {column!r} is no column of the data set; "
            f"choose one of: {', '.join(train.column_names)}."
        )
    try:
        partitioner = PARTITIONERS[config.partitioner](config, num_partitions, column)
        partitioner.dataset = train
        available = partitioner.num_partitions
        partitioner.load_partition(0)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"partitioner {config.partitioner!r} cannot deal out {len(train)} examples to "
            f"{num_partitions} clients by {column!r}: {error} Change its settings "
            f"({_settings_in_use(config)}), the partitioner, or the number of clients."
        ) from error
    if available < num_partitions:
        raise ConfigError(
            f"partition-by = {column!r} has {available} different values, but there are "
            f"{num_partitions} clients and each needs one of its own; run {available} at most."
        )
    return partitioner


def _settings_in_use(config: "DataConfig") -> str:
    names = {
        "dirichlet": ("dirichlet-alpha", "min-partition-size"),
        "pathological": ("num-classes-per-partition",),
        "shard": ("num-shards-per-partition", "shard-size"),
    }.get(config.partitioner, ("partition-by",))
    return ", ".join(f"{name} = {getattr(config, name.replace('-', '_'))}" for name in names)
