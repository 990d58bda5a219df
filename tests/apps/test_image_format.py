from collections.abc import Callable

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as Pictures

from apps.image_classification.image_format import ImageFormat, natural_mode


def pictures(*images: Pictures.Image) -> Dataset:
    return Dataset.from_dict({"img": list(images)}, features=Features(img=Image()))


def colour(height: int = 4, width: int = 3) -> Pictures.Image:
    random = np.random.default_rng(0)
    return Pictures.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_colour_images_keep_every_pixel() -> None:
    image = colour()
    pixels = ImageFormat.like(image).decode(pictures(image, image), "img")
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, 4, 3)
    assert np.array_equal(pixels[1].permute(1, 2, 0).numpy(), np.asarray(image))


def test_grey_images_have_one_channel_unless_rgb_is_asked_for() -> None:
    image = colour().convert("L")
    grey = ImageFormat.like(image).decode(pictures(image), "img")
    rgb = ImageFormat.like(image, mode="RGB").decode(pictures(image), "img")
    assert grey.shape == (1, 1, 4, 3)
    assert np.array_equal(grey[0, 0].numpy(), np.asarray(image))
    assert torch.equal(rgb, grey.expand(1, 3, 4, 3))


def test_images_are_resized_when_asked() -> None:
    form = ImageFormat.like(colour(), size=8)
    assert form.decode(pictures(colour(4, 3), colour(9, 9)), "img").shape == (2, 3, 8, 8)


def test_no_images_give_an_empty_tensor() -> None:
    assert ImageFormat.like(colour()).decode(pictures(), "img").shape == (0, 3, 4, 3)


def test_images_of_different_sizes_are_refused(refusal: Callable[..., str]) -> None:
    form = ImageFormat.like(colour(4, 3))
    text = refusal(form.decode, pictures(colour(4, 3), colour(5, 3)), "img")
    assert "image 1 has 5 x 3 pixels" in text
    assert "has 4 x 3" in text
    assert "set image-size" in text


def test_colour_among_grey_images_is_refused_unless_grey_is_asked_for(
    refusal: Callable[..., str],
) -> None:
    grey, rgb = colour().convert("L"), colour()
    text = refusal(ImageFormat.like(grey).decode, pictures(grey, rgb), "img")
    assert "image 1 has mode 'RGB'" in text
    assert "set image-mode = 'RGB' to keep the colours, or 'L' to drop them" in text
    dropped = ImageFormat.like(grey, mode="L").decode(pictures(grey, rgb), "img")
    assert torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize(
    ("mode", "natural"), [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB")]
)
def test_modes_of_8_bits_have_a_natural_one(mode: str, natural: str) -> None:
    assert natural_mode(colour().convert(mode)) == natural


def test_modes_of_more_bits_are_refused(refusal: Callable[..., str]) -> None:
    text = refusal(natural_mode, Pictures.fromarray(np.zeros((2, 2), dtype=np.uint16)))
    assert "an image has mode 'I;16'" in text
    assert "convert the data set's images" in text
