import numpy as np
import pytest

from simulations import parity
from simulations.dirichlet import deal_out
from simulations.image_data import load_images
from simulations.parity import weight_difference
from simulations.training import Training

TRAINING = Training(
    data=load_images("digits", "", 200, 10),
    model="cnn",
    batch_size=16,
    rounds=1,
    learning_rate=0.1,
    seed=5,
)
PARTS = deal_out(TRAINING.data.train_labels.numpy(), 5, 0.5, np.random.default_rng(5))


def test_gpsl_is_a_plain_loop_on_its_own_batches() -> None:
    assert weight_difference(TRAINING, PARTS, num_steps=6) <= 1e-12


def test_other_batches_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(*args: object) -> list[list[int]]:
        return list(original(*args))[::-1]  # type: ignore[arg-type]

    original = parity._global_batches
    monkeypatch.setattr(parity, "_global_batches", backwards)
    assert weight_difference(TRAINING, PARTS, num_steps=6) > 1e-4
