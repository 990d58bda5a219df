import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.image_classification.config import AppConfig, DataConfig
from apps.image_classification.settings import settings_of
from flower_psl.wire import ENCODINGS

ROOT = Path(__file__).parents[2]


def test_the_defaults_are_those_of_the_project_file() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        written = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    known = {**settings_of(DataConfig), **settings_of(AppConfig)}
    assert written == {key: item.default for key, item in known.items()}


def test_an_empty_run_config_gives_the_defaults() -> None:
    assert AppConfig.from_run_config({}) == AppConfig()


def test_keys_reach_their_fields() -> None:
    config = AppConfig.from_run_config(
        {"batch-size": 8, "seed": 3, "partitioner": "iid", "learning-rate": 1, "drop-last": True}
    )
    assert (config.batch_size, config.learning_rate, config.drop_last) == (8, 1.0, True)
    assert (config.data.seed, config.seed, config.data.partitioner) == (3, 3, "iid")


@pytest.mark.parametrize(
    ("run_config", "words"),
    [
        ({"batchsize": 8}, ["batchsize = 8", "did you mean", "batch-size", "The keys are"]),
        ({"zzzzz": 1}, ["zzzzz = 1", "no key of this app", "remove it", "num-server-rounds"]),
        ({"transport": "grpc"}, ["transport = 'grpc'", "auto, stream, messages"]),
        *(
            ({f"{value}-encoding": "int4"}, [f"{value}-encoding = 'int4'", *ENCODINGS])
            for value in ("activation", "gradient", "weight")
        ),
        ({"sampler": "gspl"}, ["sampler = 'gspl'", "'gpsl'", "gpsl, fls, fpls, sl"]),
        (
            {"partitioner": "dirichlett"},
            ["'dirichlett'", "iid, dirichlet, pathological, shard, natural-id"],
        ),
        (
            {"model": "resnet-18"},
            ["model = 'resnet-18'", "'resnet18'", "small-cnn", "torchvision"],
        ),
        ({"optimizer": "adam"}, ["optimizer = 'adam'", "sgd, adamw"]),
        ({"learning-rate-schedule": "step"}, ["'step'", "constant, cosine"]),
        ({"image-mode": "CMYK"}, ["image-mode = 'CMYK'", "L, RGB"]),
        ({"image-size": -1}, ["image-size = -1", "at least 0"]),
        ({"max-train-examples": -1}, ["max-train-examples = -1", "at least 0"]),
        ({"dirichlet-alpha": 0}, ["dirichlet-alpha = 0.0", "above 0"]),
        ({"min-partition-size": -1}, ["min-partition-size = -1", "at least 0"]),
        ({"num-classes-per-partition": 0}, ["num-classes-per-partition = 0", "at least 1"]),
        ({"num-shards-per-partition": -1}, ["num-shards-per-partition = -1", "at least 0"]),
        ({"shard-size": -1}, ["shard-size = -1", "at least 0"]),
        ({"seed": -1}, ["seed = -1", "at least 0"]),
        ({"seed": 2**63}, [f"seed = {2**63}", "below"]),
        ({"batch-size": 0}, ["batch-size = 0", "at least 1"]),
        ({"local-batch-size": -1, "sampler": "fls"}, ["local-batch-size = -1", "at least 0"]),
        ({"min-client-batch": 0}, ["min-client-batch = 0", "at least 1"]),
        ({"sampler": "straggler"}, ["client-costs is empty", "'straggler'", "steps.jsonl"]),
        ({"participation": 0.2}, ["participation = 0.2 has no effect", "sampler 'straggler'"]),
        ({"client-costs": "/a.csv"}, ["client-costs = '/a.csv' has no effect", "'straggler'"]),
        ({"participation": 1.1}, ["participation = 1.1", "at most 1"]),
        ({"concentration": 0.0}, ["concentration = 0.0", "above 0"]),
        (
            {"sampler": "straggler", "client-costs": "costs.csv"},
            ["client-costs = 'costs.csv' is a relative path", "absolute"],
        ),
        ({"num-server-rounds": 0}, ["num-server-rounds = 0", "at least 1"]),
        ({"steps-per-round": -1}, ["steps-per-round = -1", "at least 0"]),
        ({"learning-rate": 0.0}, ["learning-rate = 0.0", "above 0"]),
        ({"momentum": 1.0}, ["momentum = 1.0", "below 1"]),
        ({"weight-decay": -0.1}, ["weight-decay = -0.1", "at least 0"]),
        ({"max-grad-norm": -1.0}, ["max-grad-norm = -1.0", "at least 0"]),
        ({"label-smoothing": 1.0}, ["label-smoothing = 1.0", "below 1"]),
        ({"fraction-evaluate": 1.1}, ["fraction-evaluate = 1.1", "at most 1"]),
        ({"evaluate-batch-size": 0}, ["evaluate-batch-size = 0", "at least 1"]),
        ({"min-available-nodes": 0}, ["min-available-nodes = 0", "at least 1"]),
        ({"node-timeout-s": 0.0}, ["node-timeout-s = 0.0", "above 0"]),
        ({"step-timeout-s": 0.0}, ["step-timeout-s = 0.0", "above 0"]),
        ({"torch-num-threads": -1}, ["torch-num-threads = -1", "at least 0"]),
        ({"device": "gpu"}, ["device = 'gpu'", "cannot be used on this machine", "'cpu'"]),
        ({"out": "runs/1"}, ["out = 'runs/1'", "a folder of its own", "absolute", "/home/me"]),
        ({"stream-key-file": "server.key"}, ["stream-key-file = 'server.key'", "absolute"]),
        ({"stream-certificate-file": "s.crt"}, ["stream-certificate-file = 's.crt'", "absolute"]),
        (
            {"stream-root-certificates-file": "ca.crt"},
            ["stream-root-certificates-file = 'ca.crt'", "absolute"],
        ),
        ({"stream-reconnect-timeout-s": 0.0}, ["stream-reconnect-timeout-s = 0.0", "above 0"]),
        ({"stream-max-frame-bytes": 0}, ["stream-max-frame-bytes = 0", "at least 1"]),
        ({"stream-max-frame-bytes": 2**31}, ["stream-max-frame-bytes = 2147483648", "below"]),
        ({"train-split": "test"}, ["train-split and test-split are both 'test'", "two different"]),
        ({"partitioner": "natural-id"}, ["partition-by is empty", "'natural-id'", "column"]),
        (
            {"partitioner": "shard", "num-shards-per-partition": 0},
            ["num-shards-per-partition and shard-size are both 0", "num-shards-per-partition = 2"],
        ),
        ({"normalize-mean": "0.5"}, ["normalize-mean = '0.5'", "1 and 0 values", "give both"]),
    ],
)
def test_values_that_break_a_rule_are_refused(
    refusal: Callable[..., str], run_config: dict[str, bool | float | int | str], words: list[str]
) -> None:
    text = refusal(AppConfig.from_run_config, run_config)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    "name", ["", "./cifar10", "../cifar10", "~/cifar10", "shared/data/cifar10"]
)
def test_data_set_paths_have_to_be_absolute(refusal: Callable[..., str], name: str) -> None:
    text = refusal(DataConfig, dataset=name)
    assert f"dataset = {name!r}" in text
    assert "the path of a local folder has to be absolute" in text


@pytest.mark.parametrize("name", ["digits", "mnist", "uoft-cs/cifar10", "/data/cifar10"])
def test_names_and_absolute_paths_are_accepted(name: str) -> None:
    assert DataConfig(dataset=name).dataset == name
