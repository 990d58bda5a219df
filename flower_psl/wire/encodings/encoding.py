"""What an encoding of tensors is."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NewRng = Callable[[], np.random.Generator]


class Encoding(Protocol):
    """Turns a floating-point tensor into tensors that are smaller, and back.

    An encoding is asked only about floating-point tensors of more bytes an element than its
    own; `flower_psl.wire.encodings.values` sees to that, in one place.

    Attributes
    ----------
    suffixes : tuple of str
        What each part's name ends with; the first part is the values and has ``""``.
    itemsize : int
        Bytes of an element of the values as they travel.
    """

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What each part's name ends with."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element as it travels."""

    def encode(self, tensor: Tensor, axis: int, new_rng: NewRng | None) -> tuple[Tensor, ...]:
        """Return the parts that travel.

        Parameters
        ----------
        tensor : Tensor
            Floating point, on the CPU, with at least one element.
        axis : int
            Where its channels lie; a tensor of fewer than two dimensions is one channel.
        new_rng : callable or None
            Makes the generator of rounding at random, which keeps the mean, for an encoding
            that knows how; None stands for rounding to the nearest value.
        """

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype, axis: int) -> Tensor:
        """Return a tensor of the given dtype and the shape of the first part.

        Raises
        ------
        ProtocolError
            If a part is not what `encode` makes.
        """
