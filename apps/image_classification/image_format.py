"""What encoded images have in common, so that many of them decode to one tensor."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from datasets import Dataset
from PIL.Image import Image
from torch import Tensor

from flower_psl import ConfigError

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")
CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """The format of decoded images.

    Attributes
    ----------
    mode : str
        "L" (grey) or "RGB".
    drops_colour : bool
        Whether colour images may become grey.
    height, width : int
        In pixels.
    resizes : bool
        Whether images of other sizes are resized.
    """

    mode: str
    drops_colour: bool
    height: int
    width: int
    resizes: bool

    @classmethod
    def like(cls, image: Image, *, mode: str = "", size: int = 0) -> Self:
        """Return the format of images like this one.

        Parameters
        ----------
        image : PIL.Image.Image
        mode : str
            "L", "RGB", or "": grey if the image is grey, else RGB.
        size : int
            Height and width to resize to, in pixels; 0: those of the image.

        Raises
        ------
        ConfigError
            If the image has a mode that cannot be decoded.
        """
        return cls(
            mode=mode or natural_mode(image),
            drops_colour=mode == "L",
            height=size or image.height,
            width=size or image.width,
            resizes=size > 0,
        )

    @property
    def num_channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return CHANNELS[self.mode]

    def decode(self, dataset: Dataset, column: str) -> Tensor:
        """Decode a column of images.

        Returns
        -------
        Tensor, shape (N, C, H, W), uint8

        Raises
        ------
        ConfigError
            If an image has another size, colour where the others are grey, or a mode that
            cannot be decoded.
        """
        shape = (len(dataset), self.height, self.width, self.num_channels)
        pixels = np.empty(shape, dtype=np.uint8)
        for index, image in enumerate(dataset[column]):
            pixels[index] = self._decode_one(image, index)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _decode_one(self, image: Image, index: int) -> np.ndarray:
        if natural_mode(image) == "RGB" and self.mode == "L" and not self.drops_colour:
            raise ConfigError(
                f"image {index} has mode {image.mode!r}, but the first of the training split is "
                "grey; set image-mode = 'RGB' to keep the colours, or 'L' to drop them."
            )
        image = image.convert(self.mode)
        if self.resizes:
            image = image.resize((self.width, self.height))
        if (image.height, image.width) != (self.height, self.width):
            raise ConfigError(
                f"image {index} has {image.height} x {image.width} pixels, but the first of the "
                f"training split has {self.height} x {self.width}; set image-size to the height "
                "and width to which all are to be resized."
            )
        return np.asarray(image).reshape(self.height, self.width, self.num_channels)


def natural_mode(image: Image) -> str:
    """Return "L" for a grey image, "RGB" for one with colours.

    Raises
    ------
    ConfigError
        If its mode cannot be decoded, such as those of more than 8 bits a channel.
    """
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise ConfigError(
            f"an image has mode {image.mode!r}, but only these can be decoded: "
            f"{', '.join(GREY_MODES + COLOUR_MODES)}; convert the data set's images to one."
        )
    return "L" if image.mode in GREY_MODES else "RGB"
