import pytest
import torch
from torch import Tensor

from flower_psl.errors import CheckpointError
from flower_psl.storage import check_tensors

OWN = {"weight": torch.zeros(2, 3), "count": torch.tensor(0)}


def test_tensors_that_differ_in_values_only_may_take_the_place() -> None:
    saved = {"count": torch.tensor(7), "weight": torch.ones(2, 3)}
    assert check_tensors(saved, OWN) is saved


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": torch.zeros(1)}, r"\['bias'\] are missing or unknown; .* the 2 of.*Build"),
        ({"weight": torch.zeros(3, 2)}, r"weight is torch.float32 \(3, 2\), .*\(2, 3\).*Build"),
        ({"weight": torch.tensor(0.0)}, r"weight is torch.float32 \(\), .* both must agree"),
        ({"count": torch.tensor(0.0)}, r"count is torch.float32 \(\), .*torch.int64 \(\)"),
    ],
)
def test_others_are_refused_by_name(changes: dict[str, Tensor], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        check_tensors({**OWN, **changes}, OWN)


def test_a_missing_one_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"\['count'\] are missing"):
        check_tensors({"weight": OWN["weight"]}, OWN)
