"""Several methods on their own, each from the same weights, for ``compare = true``."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from .config import AppConfig
from .data import ImageData
from .device_needs import device_needs
from .methods import CUSTOM, Split
from .phase_checks import without_effect
from .phases import Phase
from .run_phases import run_phases


def compared(
    grid: Grid, config: AppConfig, images: ImageData
) -> Iterator[tuple[AppConfig, Result]]:
    """Run each phase as a run of its own: same data, weights and seed, none after another.

    With ``out``, each leaves its files in a folder there that has the name of the method, and
    beside them, written last, ``device.json``: what the method asks of a device.

    Yields
    ------
    AppConfig, Result
        Of each run, when it has ended.

    Raises
    ------
    PslError
        If a method cannot go on.
    """
    # All of them before the first one begins, since this is where settings are refused.
    runs = [(phase, _alone(config, phase)) for phase in config.parsed_phases]
    for phase, alone in runs:
        result = run_phases(grid, alone, images)
        if alone.out:
            num_devices = len(list(grid.get_node_ids()))
            needs = device_needs(alone, phase.method, images.spec, num_devices)
            Path(alone.out, "device.json").write_text(json.dumps(asdict(needs), indent=2) + "\n")
        yield alone, result


def _alone(config: AppConfig, phase: Phase) -> AppConfig:
    """Return the configuration of a run of one phase, without what belongs to others."""
    others: dict[str, Any] = {
        item.name: item.default for item in without_effect(config, [phase]).values()
    }
    if phase.name != CUSTOM:  # it says itself what the keys of a custom one say
        others |= {field.name: "" for field in fields(Split)}
    return replace(
        config,
        compare=False,
        phases="",
        method=phase.name,
        num_server_rounds=phase.num_rounds,
        out=config.out and str(Path(config.out, phase.name)),
        **others,
    )
