from collections.abc import Callable

import pytest

from apps.image_classification.config import AppConfig
from apps.image_classification.methods import CUSTOM, METHODS, Split
from apps.image_classification.phases import run_name

RunConfig = dict[str, bool | float | int | str]


def test_a_run_is_one_phase_unless_it_is_told_otherwise() -> None:
    [phase] = AppConfig().parsed_phases
    assert (phase.name, phase.num_rounds) == (CUSTOM, 10)
    assert phase.method.split == METHODS["gpsl"].split


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_row_of_the_table(name: str) -> None:
    config = AppConfig.from_run_config(
        {"method": name, "num-server-rounds": 4, "min-available-nodes": 3}
    )
    [phase] = config.parsed_phases
    assert (phase.method, phase.num_rounds) == (METHODS[name], 4)
    assert run_name(config) == name


def test_phases_follow_each_other() -> None:
    config = AppConfig.from_run_config({"phases": " fedavg:3,gpsl : 7 ", "num-server-rounds": 10})
    assert [(phase.name, phase.num_rounds) for phase in config.parsed_phases] == [
        ("fedavg", 3),
        ("gpsl", 7),
    ]
    assert run_name(config) == " fedavg:3,gpsl : 7 "


def test_a_custom_method_is_what_the_keys_say() -> None:
    config = AppConfig.from_run_config(
        {
            "phases": "fedavg:1, custom:2",
            "sampler": "fls",
            "client-sync": "round",
            "server-update": "per-client-average",
            "client-strategy": "fedadam",
        }
    )
    assert config.parsed_phases[1].method.split == Split(
        sampler="fls",
        client_sync="round",
        server_update="per-client-average",
        client_strategy="fedadam",
    )


@pytest.mark.parametrize("compare", [False, True])
def test_what_a_custom_phase_is_does_not_contradict_the_other_phases(compare: bool) -> None:
    run_config: RunConfig = {"client-sync": "none", "fraction-evaluate": 1.0, "compare": compare}
    config = AppConfig.from_run_config({"phases": "gpsl:2, custom:1", **run_config})
    assert [phase.method.split for phase in config.parsed_phases] == [
        METHODS["gpsl"].split,
        Split(client_sync="none"),
    ]


@pytest.mark.parametrize(
    ("run_config", "name"),
    [
        ({}, "gpsl"),
        ({"sampler": "fpls"}, "psl"),
        ({"sampler": "sl", "client-sync": "step"}, "sl"),
        ({"sampler": "fls"}, CUSTOM),
        (
            {"sampler": "fls", "client-sync": "round", "server-update": "per-client-sequential"},
            "splitfed-v2",
        ),
    ],
)
def test_records_name_a_custom_method_that_has_a_name(run_config: RunConfig, name: str) -> None:
    assert run_name(AppConfig.from_run_config(run_config)) == name


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ("fedavg", ["'fedavg'", "cannot be read at 'fedavg'", 'write "fedavg:3, gpsl:7"']),
        ("fedavg:0", ["cannot be read at 'fedavg:0'", "at least 1"]),
        ("fedavg:-1, gpsl:1", ["cannot be read at 'fedavg:-1'"]),
        ("fedavg:1.5", ["cannot be read at 'fedavg:1.5'", "a whole number"]),
        ("fedavg:1,", ["cannot be read at ''"]),
        (":3", ["cannot be read at ':3'"]),
        ("fedavg:1, gspl:1", ["method = 'gspl' does not exist", "'gpsl'", "splitfed-v1"]),
        ("local-only:1, gpsl:1", ["'local-only' leaves no whole model", "make it the last"]),
    ],
)
def test_phases_that_cannot_be_are_refused(
    refusal: Callable[..., str], phases: str, words: list[str]
) -> None:
    text = refusal(AppConfig.from_run_config, {"phases": phases})
    assert [word for word in ["phases", *words] if word not in text] == []


@pytest.mark.parametrize(
    ("run_config", "words"),
    [
        (
            {"method": "gpsl", "sampler": "fls"},
            ["sampler = 'fls'", "method = 'gpsl'", "means sampler = 'gpsl'", "method = 'custom'"],
        ),
        (
            {"method": "splitfed-v1", "client-sync": "step"},
            ["client-sync = 'step'", "method = 'splitfed-v1'", "client-sync = 'round'"],
        ),
        (
            {"method": "splitfed-v1", "server-update": "global-batch"},
            ["server-update = 'global-batch'", "server-update = 'per-client-average'"],
        ),
        (
            {"method": "fedavg", "sampler": "gpsl"},
            ["sampler = 'gpsl'", "method = 'fedavg'", "does not cut the model"],
        ),
        (
            {"phases": "fedavg:1, gpsl:1", "client-strategy": "fedadam"},
            ["client-strategy = 'fedadam'", "method = 'gpsl'"],
        ),
        (
            {"phases": "custom:1, gpsl:1", "client-sync": "none", "fraction-evaluate": 1.0},
            ["'custom' leaves no whole model"],
        ),
        (
            {"phases": "fedavg:3, gpsl:7", "num-server-rounds": 3},
            ["num-server-rounds = 3", "10 rounds", "leave out num-server-rounds"],
        ),
        (
            {"phases": "fedavg:3", "method": "gpsl"},
            ["method = 'gpsl' and phases = 'fedavg:3'", "leave out method"],
        ),
        ({"method": "fedprx"}, ["method = 'fedprx' does not exist", "'fedprox'"]),
        ({"client-strategy": "fedopt"}, ["client-strategy = 'fedopt' does not exist"]),
    ],
)
def test_what_contradicts_is_refused_naming_both(
    refusal: Callable[..., str], run_config: RunConfig, words: list[str]
) -> None:
    text = refusal(AppConfig.from_run_config, run_config)
    assert [word for word in words if word not in text] == []


def test_what_a_method_means_anyway_may_be_said() -> None:
    config = AppConfig.from_run_config({"phases": "fedavg:1, gpsl:1", "sampler": "gpsl"})
    assert config.sampler == "gpsl"
