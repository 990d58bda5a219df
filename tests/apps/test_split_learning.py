from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAdam
from torch import nn

from apps.image_classification.config import AppConfig
from apps.image_classification.image_spec import ImageSpec
from apps.image_classification.methods import METHODS
from apps.image_classification.models import initial_model
from apps.image_classification.split_learning import build_strategy
from flower_psl import (
    Checkpoints,
    CutError,
    Encodings,
    FailurePolicy,
    FixedLocalSampler,
    GlobalSampler,
    StreamSettings,
)

DIGITS = ImageSpec(num_channels=1, height=8, width=8, num_classes=10)


def model() -> nn.Module:
    return initial_model("small-cnn", DIGITS, seed=0)


def test_the_strategy_is_the_one_configured(tmp_path: Path) -> None:
    config = AppConfig.from_run_config(
        {
            "batch-size": 16,
            "seed": 4,
            "max-grad-norm": 2.0,
            "steps-per-round": 3,
            "label-smoothing": 0.1,
            "learning-rate-schedule": "cosine",
            "fraction-evaluate": 0.5,
            "min-available-nodes": 5,
            "node-timeout-s": 7,
            "step-timeout-s": 8,
            "quorum": 0.75,
            "min-clients": 4,
            "max-redraws": 6,
            "max-offences": 2,
            "max-activation-norm": 50.0,
            "transport": "messages",
            "stream-address": "0.0.0.0:9200",
            "stream-advertise": "server.example:9200",
            "stream-certificate-file": "/etc/psl/server.crt",
            "stream-key-file": "/etc/psl/server.key",
            "stream-root-certificates-file": "/etc/psl/ca.crt",
            "stream-reconnect-timeout-s": 20,
            "stream-max-frame-bytes": 10**6,
            "activation-encoding": "int8",
            "gradient-encoding": "bf16",
            "weight-encoding": "fp16",
            "out": str(tmp_path),
        }
    )
    strategy = build_strategy(config, model())
    assert strategy.sampler == GlobalSampler(batch_size=16, seed=4)
    assert isinstance(strategy.loss_fn, nn.CrossEntropyLoss)
    assert strategy.loss_fn.label_smoothing == 0.1
    assert (strategy.max_grad_norm, strategy.steps_per_round) == (2.0, 3)
    assert (strategy.fraction_evaluate, strategy.min_available_nodes) == (0.5, 5)
    assert strategy.node_timeout_s == 7.0
    assert strategy.failures == FailurePolicy(
        step_timeout_s=8.0,
        quorum=0.75,
        min_clients=4,
        max_redraws=6,
        max_offences=2,
        max_activation_norm=50.0,
    )
    assert strategy.transport == "messages"
    assert strategy.stream == StreamSettings(
        address="0.0.0.0:9200",
        advertise="server.example:9200",
        certificate_file="/etc/psl/server.crt",
        key_file="/etc/psl/server.key",
        root_certificates_file="/etc/psl/ca.crt",
        reconnect_timeout_s=20.0,
        max_frame_bytes=10**6,
    )
    assert strategy.encodings == Encodings(activations="int8", gradients="bf16", weights="fp16")
    assert (strategy.seed, strategy.model_name) == (4, "small-cnn")
    assert strategy.lr_scheduler_fn is not None
    assert strategy.recorder is not None


def test_plain_text_reaches_the_stream() -> None:
    config = AppConfig.from_run_config({"stream-plain-text": True})
    assert build_strategy(config, model()).stream == StreamSettings(plain_text=True)


def test_overlap_is_for_the_phases_that_can() -> None:
    config = AppConfig.from_run_config({"overlap": True, "phases": "gpsl:1, splitfed-v2:1"})
    splits = [phase.method.split for phase in config.parsed_phases]
    assert [build_strategy(config, model(), split).overlap for split in splits] == [True, False]


def test_what_is_off_by_default_is_off() -> None:
    strategy = build_strategy(AppConfig(), model())
    assert not strategy.overlap
    assert strategy.max_grad_norm is None
    assert strategy.steps_per_round is None
    assert strategy.lr_scheduler_fn is None
    assert strategy.recorder is None


def test_a_cut_that_is_not_there_is_refused() -> None:
    with pytest.raises(CutError, match="block9"):
        build_strategy(AppConfig(cut="block9"), model())


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.split])
def test_a_method_of_split_learning_sets_its_arguments(name: str) -> None:
    strategy = build_strategy(AppConfig(method=name), model())
    row = METHODS[name].split
    assert row is not None
    assert (strategy.client_sync, strategy.server_update) == (row.client_sync, row.server_update)
    assert strategy.method == name
    assert strategy.client_strategy is None


def test_a_phase_has_the_arguments_of_its_own_method() -> None:
    config = AppConfig(phases="gpsl:1, splitfed-v1:1")
    strategy = build_strategy(config, model(), config.parsed_phases[1].method.split)
    assert strategy.sampler == FixedLocalSampler(batch_size=64)
    assert strategy.client_sync == "round"


def test_a_strategy_of_flower_can_aggregate_client_segments() -> None:
    config = AppConfig(client_sync="round", client_strategy="fedadam", server_learning_rate=0.3)
    strategy = build_strategy(config, model())
    assert isinstance(strategy.client_strategy, FedAdam)
    assert strategy.client_strategy.eta == 0.3


def test_a_run_is_saved_where_and_when_configured() -> None:
    assert build_strategy(AppConfig(), model()).checkpoints is None
    config = AppConfig(checkpoint_folder="/runs/1", checkpoint_every_steps=50, resume="never")
    assert build_strategy(config, model()).checkpoints == Checkpoints(
        folder="/runs/1", every_steps=50, every_rounds=1, resume="never"
    )
    seldom = AppConfig(checkpoint_folder="/runs/1", checkpoint_every_rounds=0)
    assert build_strategy(seldom, model()).checkpoints == Checkpoints(
        folder="/runs/1", every_rounds=None
    )
