"""A floating-point type of fewer bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.encodings.encoding import NewRng


class Cast:
    """Rounds to the nearest value of a smaller floating-point type.

    A finite value beyond the type's range becomes its largest value, so that rounding makes
    no infinity. NaN and infinities stay what they are: whoever decodes them must see them.

    Parameters
    ----------
    dtype : torch.dtype
        The type that travels: ``torch.bfloat16`` keeps float32's range and 8 significant
        bits, ``torch.float16`` has 11 bits and ends at 65504.
    """

    suffixes = ("",)

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.itemsize = dtype.itemsize

    def encode(self, tensor: Tensor, axis: int, new_rng: NewRng | None) -> tuple[Tensor, ...]:
        """Return the rounded values; channels and `new_rng` do not matter."""
        rounded = tensor.to(self._dtype)
        # The extremes tell as much as all values do, and faster.
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(rounded)):
            largest = torch.finfo(self._dtype).max
            clamped = tensor.clamp(-largest, largest)
            rounded = torch.where(torch.isfinite(tensor), clamped, tensor).to(self._dtype)
        return (rounded,)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype, axis: int) -> Tensor:
        """Return the values in their original type.

        Raises
        ------
        ProtocolError
            If the values are not of the type that travels.
        """
        (values,) = parts
        if values.dtype != self._dtype:
            raise ProtocolError(f"{values.dtype} values; they travel as {self._dtype}")
        return values.to(dtype)
