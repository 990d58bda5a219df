from pathlib import Path
from typing import Any

import pytest

from flower_psl.errors import ConfigError
from flower_psl.server.checkpoints import Checkpoints
from flower_psl.storage import Version


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folder": ""}, "folder is empty; .* Name one"),
        ({"every_steps": 0}, "every_steps is 0; it is an integer of 1 or more or None"),
        ({"every_rounds": 1.5}, "every_rounds is 1.5; it is an integer"),
        ({"keep": None}, "keep is None; it is an integer of 1 or more$"),
        ({"keep": True}, "keep is True"),
        ({"resume": "sometimes"}, "resume is 'sometimes'; it is 'auto' or 'never'"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Checkpoints(**({"folder": "runs"} | changes))


def test_a_run_is_resumed_from_a_folder_with_checkpoints_unless_told_not_to(
    tmp_path: Path,
) -> None:
    auto = Checkpoints(folder=tmp_path / "run")
    assert not auto.will_resume
    auto.versions.write(Version(1, 0), [b""])
    assert auto.will_resume
    assert not Checkpoints(folder=str(tmp_path / "run"), resume="never").will_resume


def test_never_resuming_replaces_nothing(tmp_path: Path) -> None:
    never = Checkpoints(folder=tmp_path, resume="never")
    never.check_folder()
    for step in (10, 20):
        never.versions.write(Version(1, step), [b""])
    rule = r"has 2 checkpoints, the last of round 1, step 20, .* Name another"
    with pytest.raises(ConfigError, match=rule):
        never.check_folder()
    Checkpoints(folder=tmp_path).check_folder()
