from typing import Any

import pytest
import torch

from flower_psl.errors import CheckpointError
from flower_psl.storage import check_alike

OWN = {"lr": 0.1, "betas": (0.9, 0.999), "fused": None, "name": "a", "rate": torch.tensor(0.1)}


@pytest.mark.parametrize(
    "changes", [{}, {"lr": 1}, {"fused": True}, {"name": "b"}, {"rate": torch.tensor(3.0)}]
)
def test_other_values_of_one_kind_pass(changes: dict[str, Any]) -> None:
    check_alike({**OWN, **changes}, OWN, "group")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"lr": "x"}, "lr"),
        ({"lr": True}, "lr"),
        ({"lr": None}, "lr"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": [0.9, 0.9]}, "betas"),
        ({"betas": (0.9, "x")}, "betas/1"),
        ({"rate": torch.zeros(2)}, "rate"),
        ({"rate": torch.tensor(1)}, "rate"),
    ],
)
def test_values_built_otherwise_are_refused_by_place(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(CheckpointError, match=rf"the saved group/{where} is .*expected; .*alike"):
        check_alike({**OWN, **changes}, OWN, "group")


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the saved group is"):
        check_alike({"lr": 0.1}, OWN, "group")
