"""Eight bits an element, with a range of its own for each channel."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flower_psl.errors import ProtocolError
from flower_psl.wire.encodings.encoding import NewRng

_STEPS = 255


class Int8:
    """Cuts each channel's range, from its least to its greatest value, into 255 equal steps.

    With ``zero`` the channel's least value and ``scale`` its range / 255, a value ``x``
    travels as ``(x - zero) / scale``, rounded to a whole number from 0 to 255. A channel's
    least value, the zero of a ReLU for example, and a channel of one single value come back
    exactly, as far as float32 holds them.

    Rounding to the nearest number is off by half a step at most. Rounding at random, up
    with the probability of the fraction that is cut off, is off by less than a step and
    right on average, so that errors of gradients cancel from step to step instead of adding
    up.

    Notes
    -----
    Three parts travel: the numbers as uint8, of the tensor's shape; ``scale`` and ``zero``
    as float32, one of each a channel. NaN, an infinity or a range beyond float32 show in
    ``scale``, and decoding refuses them.
    """

    suffixes = ("", "|scale", "|zero")
    itemsize = 1

    def encode(self, tensor: Tensor, axis: int, new_rng: NewRng | None) -> tuple[Tensor, ...]:
        """Return numbers, scale and zero."""
        values = tensor if tensor.dtype is torch.float64 else tensor.float()
        channels = _channel_shape(values, axis)
        others = [dim for dim, size in enumerate(channels) if size == 1]
        least = values.amin(others, keepdim=True)
        scale = ((values.amax(others, keepdim=True) - least) / _STEPS).float()
        zero = least.float()
        numbers = (values - zero) / scale.where(scale > 0, 1.0)
        if new_rng is not None:
            # Whole numbers of 16 bits are drawn and added faster than fractions are drawn.
            noise = new_rng().integers(-(2**15), 2**15, size=numbers.shape, dtype=np.int16)
            numbers.add_(torch.from_numpy(noise).to(numbers.dtype), alpha=2**-16)
        return (
            numbers.round_().clamp_(0, _STEPS).to(torch.uint8),
            scale.reshape(-1),
            zero.reshape(-1),
        )

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype, axis: int) -> Tensor:
        """Return ``zero + scale * number``.

        Raises
        ------
        ProtocolError
            If a part's type or shape is not that of `encode`, or a scale or zero is not a
            finite number, or a scale is negative.
        """
        numbers, scale, zero = parts
        if numbers.dtype != torch.uint8:
            raise ProtocolError(f"{numbers.dtype} values; they travel as torch.uint8")
        channels = _channel_shape(numbers, axis)
        for name, part in (("scale", scale), ("zero", zero)):
            if part.dtype != torch.float32 or part.shape != (math.prod(channels),):
                raise ProtocolError(
                    f"a {name} of {part.dtype} {tuple(part.shape)} for values of shape "
                    f"{tuple(numbers.shape)}; it is torch.float32 ({math.prod(channels)},), one "
                    "number a channel"
                )
            least, greatest = (float(extreme) for extreme in torch.aminmax(part))
            if not (math.isfinite(least) and math.isfinite(greatest)):
                raise ProtocolError(
                    f"a {name} that is NaN or infinite, as the values were before or their range "
                    "is beyond float32; every value must be finite. Look at the sender's inputs, "
                    "or lower the learning rate if training diverged"
                )
            if name == "scale" and least < 0:
                raise ProtocolError(f"a scale of {least}; a scale is 0 or more")
        exact = dtype if dtype is torch.float64 else torch.float32
        values = numbers.to(exact).mul_(scale.reshape(channels)).add_(zero.reshape(channels))
        return values.to(dtype)


def _channel_shape(tensor: Tensor, axis: int) -> list[int]:
    """Return the shape that one number a channel has, so that it fits the tensor."""
    shape = [1] * tensor.dim()
    if tensor.dim() > 1:
        shape[axis] = tensor.shape[axis]
    return shape
