import re
from pathlib import Path

import pytest

from apps.image_classification.flower_strategies import FLOWER_STRATEGIES
from apps.image_classification.methods import CUSTOM, METHODS, Split, name_of
from apps.image_classification.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_whose_it_is_and_names_what_exists(name: str) -> None:
    method = METHODS[name]
    assert method.departs
    assert method.paper
    assert (method.split is not None) == (method.trained == "split")
    assert (method.strategy in FLOWER_STRATEGIES) == (method.trained == "federated")
    if method.split is not None:
        assert method.split.sampler in SAMPLERS


def test_no_two_methods_of_split_learning_are_the_same() -> None:
    splits = [method.split for method in METHODS.values() if method.split]
    assert len(set(splits)) == len(splits)
    for name, method in METHODS.items():
        if method.split:
            assert name_of(method.split) == name
    assert name_of(Split(sampler="straggler")) == CUSTOM


@pytest.mark.parametrize("file", ["pyproject.toml", "README.md"])
def test_the_key_names_all_methods(file: str) -> None:
    text = (ROOT / file).read_text()
    [listed] = re.findall(r"gpsl, psl, splitfed-v1[a-z0-9, -]*", text)
    assert [name.strip() for name in listed.split(",")][: len(METHODS)] == list(METHODS)
