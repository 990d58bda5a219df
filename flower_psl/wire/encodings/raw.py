"""Tensors as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.encodings.encoding import NewRng


class Raw:
    """Changes nothing, and copies nothing."""

    suffixes = ("",)
    itemsize = 0

    def encode(self, tensor: Tensor, axis: int, new_rng: NewRng | None) -> tuple[Tensor, ...]:
        """Return the tensor itself."""
        return (tensor,)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype, axis: int) -> Tensor:
        """Return the tensor itself.

        Raises
        ------
        ProtocolError
            If its dtype is another one.
        """
        (values,) = parts
        if values.dtype != dtype:
            raise ProtocolError(f"{values.dtype} values; as they are, they are {dtype}")
        return values
