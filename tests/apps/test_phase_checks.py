from collections.abc import Callable

import pytest

from apps.image_classification.config import AppConfig

RunConfig = dict[str, bool | float | int | str]


@pytest.mark.parametrize(
    ("key", "value", "sampler", "user"),
    [
        ("local-batch-size", 8, "gpsl", "fls"),
        ("min-client-batch", 2, "fpls", "gpsl"),
        ("drop-last", True, "sl", "gpsl"),
        ("concentration", 2.0, "gpsl", "latent-dirichlet"),
    ],
)
def test_settings_without_effect_on_the_sampler_are_refused(
    refusal: Callable[..., str], key: str, value: int, sampler: str, user: str
) -> None:
    text = refusal(AppConfig.from_run_config, {key: value, "sampler": sampler})
    assert f"{key} = {value!r} has no effect: it belongs to sampler {user!r}" in text
    assert f"has client-sync 'step', optimizer 'sgd', sampler {sampler!r}, split learning;" in text
    assert f"leave {key} at" in text
    assert AppConfig.from_run_config({key: value, "sampler": user}).sampler == user


@pytest.mark.parametrize(
    ("key", "value", "method", "other"),
    [
        ("local-batch-size", 8, "fedavg", "gpsl"),
        ("local-batch-size", 8, "splitfed-v1", "sl"),
        ("overlap", True, "psl", "splitfed-v2"),
        ("local-epochs", 2, "local-only", "centralized"),
        ("server-learning-rate", 0.5, "fedadagrad", "fedavg"),
        ("server-momentum", 0.5, "fedavgm", "fedadam"),
        ("proximal-mu", 0.5, "fedprox", "fedavg"),
        ("num-malicious-nodes", 1, "krum", "fedmedian"),
        ("trim-share", 0.1, "fedtrimmedavg", "krum"),
        ("cut", "block2", "sl", "fedavg"),
        ("transport", "messages", "gpsl", "fedprox"),
        ("stream-connect-timeout-s", 5.0, "gpsl", "local-only"),
        ("activation-encoding", "bf16", "splitfed-v2", "centralized"),
        ("quorum", 0.5, "psl", "fedavgm"),
        ("max-update-norm", 9.0, "splitfed-v1", "fedavg"),
        ("state-dir", "/var/lib/psl", "splitfed-v1", "gpsl"),
        ("fraction-evaluate", 0.5, "fedavg", "centralized"),
        ("fraction-evaluate", 0.5, "gpsl", "local-only"),
    ],
)
def test_settings_without_effect_on_the_method_are_refused(
    refusal: Callable[..., str], key: str, value: int, method: str, other: str
) -> None:
    enough: RunConfig = {"min-available-nodes": 9}
    text = refusal(AppConfig.from_run_config, {key: value, "method": other, **enough})
    assert f"{key} = {value!r} has no effect: it belongs to" in text
    assert f"leave {key} at" in text
    AppConfig.from_run_config({key: value, "method": method, **enough})


def test_a_setting_may_belong_to_one_phase_of_several() -> None:
    config = AppConfig.from_run_config(
        {"phases": "fedavg:1, gpsl:1", "min-client-batch": 2, "transport": "messages"}
    )
    assert (config.min_client_batch, config.transport) == (2, "messages")


def test_momentum_belongs_to_an_optimizer(refusal: Callable[..., str]) -> None:
    text = refusal(AppConfig.from_run_config, {"momentum": 0.5, "optimizer": "adamw"})
    assert "momentum = 0.5 has no effect: it belongs to optimizer 'sgd'" in text
    assert "optimizer 'adamw'" in text
    AppConfig.from_run_config({"momentum": 0.5})


def test_a_client_strategy_has_the_settings_of_its_kind() -> None:
    run_config: RunConfig = {"client-sync": "round", "client-strategy": "fedavgm"}
    config = AppConfig.from_run_config(run_config | {"server-momentum": 0.5})
    assert config.server_momentum == 0.5


@pytest.mark.parametrize(
    ("run_config", "words"),
    [
        (
            {"client-sync": "none"},
            ["fraction-evaluate = 0.0", "no whole model", "set fraction-evaluate = 1.0"],
        ),
        (
            {"method": "fedavg", "learning-rate-schedule": "cosine"},
            ["'cosine'", "method 'fedavg'", "set learning-rate-schedule = 'constant'"],
        ),
        (
            {"phases": "gpsl:1, local-only:1", "learning-rate-schedule": "cosine"},
            ["'cosine'", "method 'local-only'"],
        ),
        (
            {"method": "krum"},
            ["min-available-nodes = 2", "needs 3 nodes", "set min-available-nodes = 3"],
        ),
        (
            {"method": "krum", "num-malicious-nodes": 2, "min-available-nodes": 6},
            ["min-available-nodes = 6", "num-malicious-nodes = 2 needs 7 nodes"],
        ),
        (
            {"client-sync": "round", "client-strategy": "krum"},
            ["min-available-nodes = 2", "krum", "needs 3 nodes"],
        ),
    ],
)
def test_what_a_method_cannot_do_with_is_refused(
    refusal: Callable[..., str], run_config: RunConfig, words: list[str]
) -> None:
    text = refusal(AppConfig.from_run_config, run_config)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("checkpoint-every-steps", 5), ("checkpoint-every-rounds", 2), ("resume", "never")],
)
def test_settings_of_checkpoints_without_a_folder_are_refused(
    refusal: Callable[..., str], key: str, value: int | str
) -> None:
    text = refusal(AppConfig.from_run_config, {key: value})
    assert f"{key} = {value!r} has no effect without a checkpoint-folder; name one" in text
    AppConfig.from_run_config({key: value, "checkpoint-folder": "/runs/first"})


@pytest.mark.parametrize(
    "run_config",
    [{"method": "fedavg"}, {"phases": "gpsl:1, psl:1"}, {"phases": "gpsl:1", "compare": True}],
)
def test_only_runs_of_one_method_over_the_cut_are_saved(
    refusal: Callable[..., str], run_config: RunConfig
) -> None:
    text = refusal(AppConfig.from_run_config, {"checkpoint-folder": "/runs", **run_config})
    assert "checkpoint-folder = '/runs', but only a run of one method" in text
    assert "leave checkpoint-folder empty" in text
