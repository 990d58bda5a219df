import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.restarts import restart_problems
from simulations.server_killer import Death

Step = dict[str, Any]
DEATHS = [Death(steps=3, in_writing=number == 1, seconds=1.0) for number in range(4)]
STEPS: list[Step] = [
    {"round": 1, "step": step, "loss": 0.5, "seconds": {"total": 0.1}} for step in (1, 2)
]


def write(folder: Path, steps: list[Step], weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole", STEPS)


def test_only_clocks_may_tell_a_run_with_restarts_from_one_without(
    whole: Path, tmp_path: Path
) -> None:
    killed = write(tmp_path / "killed", [step | {"seconds": {"total": 9.0}} for step in STEPS])
    assert restart_problems(DEATHS, whole, killed) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda steps: steps[:1],
        lambda steps: [*steps, steps[1]],
        lambda steps: [steps[0], steps[1] | {"loss": 0.25}],
    ],
    ids=["a gap", "a repetition", "another loss"],
)
def test_the_first_step_that_differs_is_named(
    whole: Path, tmp_path: Path, change: Callable[[list[Step]], list[Step]]
) -> None:
    killed = write(tmp_path / "killed", change(STEPS))
    [problem] = restart_problems(DEATHS, whole, killed)
    assert problem.startswith(f"step {3 if len(change(STEPS)) > 2 else 2} of the run is ")


def test_other_weights_are_named(whole: Path, tmp_path: Path) -> None:
    killed = write(tmp_path / "killed", STEPS, b"weightz")
    assert restart_problems(DEATHS, whole, killed) == [
        "the final weights are not those without restarts, to the last bit"
    ]


def test_one_kill_in_many_must_be_while_a_checkpoint_is_written(
    whole: Path, tmp_path: Path
) -> None:
    killed = write(tmp_path / "killed", STEPS)
    assert restart_problems(DEATHS[2:], whole, killed) == []
    [problem] = restart_problems([*DEATHS[2:], *DEATHS[2:]], whole, killed)
    assert problem.startswith("no checkpoint was being written")
