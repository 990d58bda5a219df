"""An experiment run as on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main

Summary = dict[str, Any]


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., Summary]:
    """Run the quick form of an experiment, check its files and return its summary."""

    def run(name: str, *options: str) -> Summary:
        out = tmp_path / name
        assert main([name, "--quick", "--out", str(out), *options]) == 0
        header, *lines = (out / "results.csv").read_text().splitlines()
        assert len(lines) > 1
        assert all(line.count(",") == header.count(",") for line in lines)
        pictures = [path.read_bytes() for path in out.glob("*.png")]
        assert pictures
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        summary: Summary = json.loads((out / "summary.json").read_text())
        return summary

    return run
