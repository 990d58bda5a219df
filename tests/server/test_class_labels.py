import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flower_psl.server.class_labels import ClassLabels, ignored_label
from flower_psl.split import LossFn

KEYS = [4, 4, 7, 9, 9, 9]  # whose example each is
OUTPUTS = torch.zeros(6, 3)
GOOD = torch.tensor([0, 1, 2, 0, 1, 2])
CLASS_LOSSES: list[LossFn] = [
    nn.CrossEntropyLoss(),
    nn.NLLLoss(),
    functional.cross_entropy,
    functional.nll_loss,
]


def wrong(loss_fn: LossFn, labels: Tensor, outputs: Tensor = OUTPUTS) -> dict[int, str]:
    """Return what is wrong, by client key."""
    classes = ClassLabels(loss_fn)
    classes.look_at(outputs)
    parts = {key: labels[[i for i, k in enumerate(KEYS) if k == key]] for key in (4, 7, 9)}
    return {key: str(error) for key, error in classes.wrong(parts, "round 1, step 2").items()}


@pytest.mark.parametrize("loss_fn", CLASS_LOSSES)
@pytest.mark.parametrize("row", range(6))
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_without_an_output_names_its_client(loss_fn: LossFn, row: int, label: int) -> None:
    labels = GOOD.clone()
    labels[row] = label
    assert wrong(loss_fn, labels) == {
        KEYS[row]: f"client {KEYS[row]}, round 1, step 2: label {label}; the model has 3 outputs, "
        "so a label is from 0 to 2. Correct this client's labels or the model's last layer."
    }


@pytest.mark.parametrize("loss_fn", CLASS_LOSSES)
def test_good_and_ignored_labels_pass(loss_fn: LossFn) -> None:
    assert wrong(loss_fn, GOOD) == {}
    assert wrong(loss_fn, torch.full((6,), -100)) == {}


def test_the_ignored_label_is_that_of_the_loss() -> None:
    assert wrong(nn.CrossEntropyLoss(ignore_index=255), torch.full((6,), 255)) == {}
    assert set(wrong(nn.CrossEntropyLoss(ignore_index=255), torch.full((6,), -100))) == {4, 7, 9}


def test_a_loss_of_classes_ignores_one_label_and_others_none() -> None:
    assert [ignored_label(loss_fn) for loss_fn in CLASS_LOSSES] == [-100] * 4
    assert ignored_label(nn.NLLLoss(ignore_index=7)) == 7
    assert ignored_label(nn.MSELoss()) is None
    assert ignored_label(functional.mse_loss) is None


def test_each_client_is_named_with_its_first_wrong_label() -> None:
    found = wrong(nn.CrossEntropyLoss(), torch.tensor([0, 5, 0, 8, 9, 0]))
    assert set(found) == {4, 9}
    assert ": label 5;" in found[4]
    assert ": label 8;" in found[9]


def test_labels_by_position_are_looked_at() -> None:
    outputs, labels = torch.zeros(6, 3, 2, 2), torch.zeros(6, 2, 2, dtype=torch.int64)
    assert wrong(nn.CrossEntropyLoss(), labels, outputs) == {}
    labels[2, 1, 0] = 3
    assert set(wrong(nn.CrossEntropyLoss(), labels, outputs)) == {7}


def test_labels_without_elements_are_none_out_of_range() -> None:
    assert wrong(nn.CrossEntropyLoss(), torch.zeros(6, 0, dtype=torch.int64)) == {}


def test_probabilities_and_other_losses_are_not_judged() -> None:
    assert wrong(nn.CrossEntropyLoss(), torch.full((6, 3), 5.0)) == {}
    assert wrong(nn.MSELoss(), torch.full((6,), 99)) == {}
    assert wrong(lambda outputs, labels: outputs.sum(), torch.full((6,), -7)) == {}
    assert wrong(nn.CrossEntropyLoss(), torch.full((6,), 99), torch.zeros(6)) == {}


def test_the_server_segment_tells_the_classes_and_stays_as_it_is() -> None:
    segment = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in segment.state_dict().items()}
    classes, activations = ClassLabels(nn.CrossEntropyLoss()), torch.randn(2, 4)
    state = torch.get_rng_state()
    classes.ask(segment, activations)
    assert torch.equal(state, torch.get_rng_state())
    assert set(classes.wrong({1: torch.tensor([3])}, "round 1, step 1")) == {1}
    assert segment.training
    for name, tensor in segment.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_is_wrong_with_the_segment_is_left_to_the_step() -> None:
    classes = ClassLabels(nn.CrossEntropyLoss())
    classes.ask(nn.Linear(4, 3), torch.randn(2, 5))
    assert classes.wrong({1: torch.tensor([99])}, "round 1, step 1") == {}
