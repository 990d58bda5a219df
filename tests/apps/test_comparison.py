import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import ArrayRecord

from apps.image_classification import comparison
from apps.image_classification.comparison import compared
from apps.image_classification.config import AppConfig
from apps.image_classification.data import load_images
from flower_psl import ConfigError

if TYPE_CHECKING:
    from tests.conftest import FakeGrid


def config(phases: str, **others: bool | int | float | str) -> AppConfig:
    keys = {name.replace("_", "-"): value for name, value in others.items()}
    return AppConfig.from_run_config(
        {"compare": True, "phases": phases, "max-train-examples": 100, **keys}
    )


def test_each_is_a_run_of_its_own(fake_grid: "type[FakeGrid]", tmp_path: Path) -> None:
    both = config(
        "centralized:1, fedavgm:1", out=str(tmp_path), seed=3, server_momentum=0.5, momentum=0.8
    )
    alone, result = next(compared(fake_grid({}), both, load_images(both.data)))
    assert (alone.method, alone.num_server_rounds, alone.seed) == ("centralized", 1, 3)
    # What only the other one has is none of its business.
    assert (alone.phases, alone.server_momentum, alone.momentum) == ("", 0.9, 0.8)
    assert isinstance(result.arrays, ArrayRecord)
    folder = tmp_path / "centralized"
    assert json.loads((folder / "summary.json").read_text())["method"] == "centralized"
    assert json.loads((folder / "device.json").read_text())["parameters"] == 0
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_custom_method_is_is_no_other_ones_business(
    fake_grid: "type[FakeGrid]", monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[AppConfig] = []
    monkeypatch.setattr(comparison, "run_phases", lambda grid, alone, images: ran.append(alone))
    both = config("custom:1, fedavg:1", sampler="fls", client_sync="round")
    for _ in compared(fake_grid({}), both, load_images(both.data)):
        pass
    assert [(alone.method, alone.sampler, alone.client_sync) for alone in ran] == [
        ("custom", "fls", "round"),
        ("fedavg", "", ""),
    ]


@pytest.mark.parametrize("phases", ["", "gpsl:1, fedavg:1, gpsl:2"])
def test_what_cannot_have_folders_of_its_own_is_refused(phases: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(phases)
    for part in ("compare = true", repr(phases), "each once", "write"):
        assert part in str(caught.value)


def test_a_method_without_a_whole_model_need_not_be_the_last() -> None:
    phases = "local-only:1, gpsl:1"
    assert [phase.name for phase in config(phases).parsed_phases] == ["local-only", "gpsl"]
    with pytest.raises(ConfigError, match="make it the last"):
        AppConfig.from_run_config({"phases": phases})
