import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl import ProtocolError
from flower_psl.server.class_labels import check_class_labels, ignored_label
from flower_psl.split import LossFn

SIZES = {4: 2, 7: 1, 9: 3}  # client key: examples
OUTPUTS = torch.zeros(6, 3)
GOOD = torch.tensor([0, 1, 2, 0, 1, 2])
CLASS_LOSSES: list[LossFn] = [
    nn.CrossEntropyLoss(),
    nn.NLLLoss(),
    functional.cross_entropy,
    functional.nll_loss,
]


def check(loss_fn: LossFn, labels: Tensor, outputs: Tensor = OUTPUTS) -> bool:
    """Tell whether the labels pass."""
    try:
        check_class_labels(loss_fn, outputs, labels, SIZES, "round 1, step 2")
    except ProtocolError:
        return False
    return True


@pytest.mark.parametrize("loss_fn", CLASS_LOSSES)
@pytest.mark.parametrize(
    ("row", "key"), [(0, 4), (1, 4), (2, 7), (3, 9), (5, 9)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_without_an_output_names_its_client(
    loss_fn: LossFn, row: int, key: int, label: int
) -> None:
    labels = GOOD.clone()
    labels[row] = label
    with pytest.raises(
        ProtocolError,
        match=rf"^client {key}, round 1, step 2: label {label}; .*3 outputs, .*0 to 2\. Correct",
    ):
        check_class_labels(loss_fn, OUTPUTS, labels, SIZES, "round 1, step 2")


@pytest.mark.parametrize("loss_fn", CLASS_LOSSES)
def test_good_and_ignored_labels_pass(loss_fn: LossFn) -> None:
    assert check(loss_fn, GOOD)
    assert check(loss_fn, torch.full((6,), -100))


def test_the_ignored_label_is_that_of_the_loss() -> None:
    assert check(nn.CrossEntropyLoss(ignore_index=255), torch.full((6,), 255))
    assert not check(nn.CrossEntropyLoss(ignore_index=255), torch.full((6,), -100))


def test_a_loss_of_classes_ignores_one_label_and_others_none() -> None:
    assert [ignored_label(loss_fn) for loss_fn in CLASS_LOSSES] == [-100] * 4
    assert ignored_label(nn.NLLLoss(ignore_index=7)) == 7
    assert ignored_label(nn.MSELoss()) is None
    assert ignored_label(functional.mse_loss) is None


def test_the_first_of_several_is_named() -> None:
    labels = torch.tensor([0, 0, 0, 8, 9, 0])
    with pytest.raises(ProtocolError, match=r"client 9, .* label 8;"):
        check_class_labels(nn.CrossEntropyLoss(), OUTPUTS, labels, SIZES, "round 1, step 2")


def test_labels_by_position_are_looked_at() -> None:
    outputs, labels = torch.zeros(6, 3, 2, 2), torch.zeros(6, 2, 2, dtype=torch.int64)
    assert check(nn.CrossEntropyLoss(), labels, outputs)
    labels[2, 1, 0] = 3
    with pytest.raises(ProtocolError, match=r"client 7, .* label 3;"):
        check_class_labels(nn.CrossEntropyLoss(), outputs, labels, SIZES, "round 1, step 2")


def test_probabilities_and_other_losses_are_not_judged() -> None:
    assert check(nn.CrossEntropyLoss(), torch.full((6, 3), 5.0))
    assert check(nn.MSELoss(), torch.full((6,), 99))
    assert check(lambda outputs, labels: outputs.sum(), torch.full((6,), -7))
