from pathlib import Path

import pytest
import torch

from flower_psl import ConfigError
from simulations.image_data import load_images


def test_digits_are_shared_out_once() -> None:
    data = load_images("digits", "", 0, 0)
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.min() == -1
    assert data.train_images.max() == 1
    few = load_images("digits", "", 10, 5)
    assert torch.equal(few.train_images, data.train_images[:10])
    assert torch.equal(few.test_labels, data.test_labels[:5])


def test_a_folder_without_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_images("cifar10", str(tmp_path / "nowhere"), 10, 10)
    for part in (str(tmp_path), "--data-path", "--data digits"):
        assert part in str(raised.value)


def test_unknown_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="data is 'mnist'; it must be 'digits' or 'cifar10'"):
        load_images("mnist", "", 0, 0)
