"""What is yours: a model, where it is cut, and data. Nothing else has to change."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CUT = "conv"

_DIGITS = load_digits()
_IMAGES = torch.tensor(_DIGITS.images, dtype=torch.float32).unsqueeze(1) / 16  # (N, 1, 8, 8)
_LABELS = torch.tensor(_DIGITS.target)
_TEST = torch.arange(len(_LABELS)) % 6 == 0


class Net(nn.Module):
    """Devices compute `conv`, so that images never leave them. The server does the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.hidden = nn.Linear(16 * 8 * 8, 64)
        self.scores = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores of shape (N, 10) for images of shape (N, 1, 8, 8)."""
        features = torch.relu(self.conv(images)).flatten(1)
        scores: Tensor = self.scores(torch.relu(self.hidden(features)))
        return scores


def train_set(device: int, num_devices: int) -> TensorDataset:
    """Return one device's images: with five devices, those of two of the ten digits."""
    mine = ~_TEST & (_LABELS % num_devices == device)
    return TensorDataset(_IMAGES[mine], _LABELS[mine])


def test_set() -> TensorDataset:
    """Return the images that no device has."""
    return TensorDataset(_IMAGES[_TEST], _LABELS[_TEST])
