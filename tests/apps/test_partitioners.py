from collections.abc import Callable, Mapping

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from apps.image_classification.config import DataConfig
from apps.image_classification.partitioners import PARTITIONERS, partitioned

NUM_EXAMPLES, NUM_PARTITIONS = 120, 4


@pytest.fixture(scope="module")
def train() -> Dataset:
    random = np.random.default_rng(1)
    rows = {
        "row": np.arange(NUM_EXAMPLES),
        "label": random.permutation(NUM_EXAMPLES) % 6,
        "writer": [f"w{number}" for number in random.permutation(NUM_EXAMPLES) % 5],
    }
    features = Features(
        row=Value("int64"), label=ClassLabel(num_classes=6), writer=Value("string")
    )
    return Dataset.from_dict(rows, features=features)


def rows(train: Dataset, config: DataConfig, num_partitions: int) -> list[list[int]]:
    partitioner = partitioned(train, config, num_partitions=num_partitions, label_column="label")
    return [list(partitioner.load_partition(key)["row"]) for key in range(num_partitions)]


CASES: Mapping[str, DataConfig] = {
    "iid": DataConfig(partitioner="iid"),
    "dirichlet": DataConfig(partitioner="dirichlet", dirichlet_alpha=0.3),
    "pathological": DataConfig(partitioner="pathological", num_classes_per_partition=3),
    "shard": DataConfig(partitioner="shard", num_shards_per_partition=2),
    "shard-size": DataConfig(partitioner="shard", num_shards_per_partition=0, shard_size=10),
    "natural-id": DataConfig(partitioner="natural-id", partition_by="writer"),
}


def test_every_partitioner_is_tested() -> None:
    assert {config.partitioner for config in CASES.values()} == set(PARTITIONERS)


@pytest.mark.parametrize("name", CASES)
def test_partitions_are_disjoint_complete_and_repeatable(train: Dataset, name: str) -> None:
    num_partitions = 5 if name == "natural-id" else NUM_PARTITIONS
    dealt = rows(train, CASES[name], num_partitions)
    everything = sorted(row for part in dealt for row in part)
    if name == "pathological":  # a class that nobody drew is left out
        assert len(everything) == len(set(everything))
    else:
        assert everything == list(range(NUM_EXAMPLES))
    assert dealt == rows(train, CASES[name], num_partitions)


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "shard"])
def test_another_seed_deals_otherwise(train: Dataset, name: str) -> None:
    config = CASES[name]
    other = DataConfig(
        partitioner=config.partitioner,
        dirichlet_alpha=config.dirichlet_alpha,
        num_classes_per_partition=config.num_classes_per_partition,
        seed=1,
    )
    assert rows(train, config, NUM_PARTITIONS) != rows(train, other, NUM_PARTITIONS)


def test_pathological_clients_have_their_number_of_classes(train: Dataset) -> None:
    labels = np.array(train["label"][:])
    dealt = rows(train, CASES["pathological"], NUM_PARTITIONS)
    assert [len(set(labels[part])) for part in dealt] == [3] * NUM_PARTITIONS


def test_a_natural_id_is_one_client(train: Dataset) -> None:
    writers = np.array(train["writer"][:])
    dealt = rows(train, CASES["natural-id"], 5)
    assert [set(writers[part]) for part in dealt] == [{f"w{key}"} for key in range(5)]


def test_clients_without_data_are_possible(train: Dataset) -> None:
    config = DataConfig(dirichlet_alpha=0.001, min_partition_size=0)
    sizes = [len(part) for part in rows(train, config, 30)]
    assert sum(sizes) == NUM_EXAMPLES
    assert min(sizes) == 0


def test_more_clients_than_examples_are_refused(
    refusal: Callable[..., str], train: Dataset
) -> None:
    text = refusal(rows, train, DataConfig(partitioner="iid"), NUM_EXAMPLES + 1)
    assert "121 clients cannot share 120 training examples" in text
    assert "run fewer clients, or raise max-train-examples" in text


def test_more_clients_than_natural_ids_are_refused(
    refusal: Callable[..., str], train: Dataset
) -> None:
    text = refusal(rows, train, CASES["natural-id"], 6)
    assert "partition-by = 'writer' has 5 different values" in text
    assert "6 clients" in text
    assert "run 5 at most" in text


def test_a_column_that_is_not_there_is_refused(
    refusal: Callable[..., str], train: Dataset
) -> None:
    text = refusal(rows, train, DataConfig(partition_by="author"), 2)
    assert "partition-by = 'author' is no column" in text
    assert "row, label, writer" in text


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            DataConfig(dirichlet_alpha=0.01, min_partition_size=29),
            ["'dirichlet'", "dirichlet-alpha = 0.01, min-partition-size = 29", "attempts"],
        ),
        (
            DataConfig(partitioner="pathological", num_classes_per_partition=7),
            ["'pathological'", "num-classes-per-partition = 7", "number of unique classes"],
        ),
        (
            DataConfig(partitioner="shard", shard_size=100),
            ["'shard'", "num-shards-per-partition = 2, shard-size = 100", "impossible"],
        ),
    ],
)
def test_what_a_partitioner_cannot_do_is_refused_with_its_reason(
    refusal: Callable[..., str], train: Dataset, config: DataConfig, words: list[str]
) -> None:
    text = refusal(rows, train, config, NUM_PARTITIONS)
    words = [*words, "120 examples to 4 clients by 'label'", "Change its settings"]
    assert [word for word in words if word not in text] == []
