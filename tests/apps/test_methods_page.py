"""docs/methods.md has every method."""

import re
from pathlib import Path

from apps.image_classification.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def test_every_method_has_a_row_of_results() -> None:
    results = PAGE.partition("## Digits")[2].partition("## CIFAR-10")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", results, re.MULTILINE) == list(METHODS)
