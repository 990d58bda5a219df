"""What a model has to know of the images it classifies."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The shape of every image, and the number of classes.

    Attributes
    ----------
    num_channels : int
        1 (grey) or 3 (RGB).
    height, width : int
        In pixels.
    num_classes : int
        Labels are 0 ... num_classes - 1.
    """

    num_channels: int
    height: int
    width: int
    num_classes: int
