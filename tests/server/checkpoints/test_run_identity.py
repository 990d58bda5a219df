import logging

import pytest
import torch
from torch import nn

from flower_psl import FixedLocalSampler, GlobalSampler, cut
from flower_psl.errors import CheckpointError
from flower_psl.server.checkpoints.run_identity import (
    check_identity,
    environment,
    model_identity,
    sampler_identity,
    warn_of_changes,
)

COUNTS = {0: 30, 1: 20}


def model(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_a_model_is_its_tensors_and_its_cut() -> None:
    whole = model_identity(cut(model(), at="1"))
    assert whole["cut"] == "1"
    assert whole["tensor 0.weight"] == "float32 (4, 3)"
    assert whole["tensor 1.running_mean"] == "float32 (4,), not trained"
    assert whole == model_identity(cut(model(), at="1"))
    assert whole != model_identity(cut(model(), at="0"))
    assert whole != model_identity(cut(model(5), at="1"))


def test_a_sampler_is_its_arguments_and_its_plan() -> None:
    def identity(sampler: GlobalSampler | FixedLocalSampler) -> object:
        return sampler_identity(sampler, sampler.schedule(COUNTS, 1))

    same = [identity(GlobalSampler(8, seed=seed)) for seed in (0, 0, 1)]
    assert same[0] == same[1]
    assert same[0] != same[2]
    assert identity(FixedLocalSampler(batch_size=4)) != same[0]


def test_the_same_run_passes() -> None:
    check_identity({"seed": 0, "cut": "a"}, {"cut": "a", "seed": 0})


def test_what_differs_is_named() -> None:
    saved = {"seed": 0, "cut": "layer1", "examples of client 3": 40}
    with pytest.raises(CheckpointError) as info:
        check_identity(saved, {"seed": 1, "cut": "layer1", "optimizer": "SGD"})
    assert str(info.value) == (
        "the checkpoint is that of another run: seed is 0 there and 1 here; examples of client 3 "
        "is 40 there and missing here; optimizer is missing there and 'SGD' here. A run goes on "
        "as it began: give it the same, or begin anew in another folder."
    )


def test_of_many_differences_the_first_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"n0 is 0 .*; n4 is 0 .* here; and 15 more\. A run"):
        check_identity({f"n{at}": 0 for at in range(20)}, {f"n{at}": 1 for at in range(20)})


def test_another_environment_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    here = environment(torch.device("cpu"))
    with caplog.at_level(logging.WARNING, "flwr.psl"):
        warn_of_changes(here, here)
        assert caplog.records == []
        warn_of_changes(here | {"torch threads": 7}, here)
    [record] = caplog.records
    assert "torch threads was 7 when the run was saved and is 1 now" in record.getMessage()
