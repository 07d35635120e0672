"""Random crops, mirroring and colour changes of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 -- registers them, and no others
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from captioning.images.preprocessing import Preprocessing, Share, preprocess_uint8

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes to training images. All are off by default.

    Attributes:
        flip: probability of mirroring; images whose captions mention left or right are never mirrored.
        scale: smallest and largest share of the image's area that a random crop keeps.
        ratio: smallest and largest ratio of the crop's width to its height.
        brightness, contrast, saturation: factors are drawn from 1 - x .. 1 + x.
        hue: shifts are drawn from -x .. x turns of the colour circle.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    flip: Fraction = 0.0
    scale: tuple[Share, Share] = (1.0, 1.0)
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"augmentation.{name}: the smaller value must come first, got {[low, high]}")

    @property
    def is_identity(self) -> bool:
        """Whether no image is changed, so that stored features can be used instead of pixels."""
        return self.scale == (1.0, 1.0) and not any(
            (self.flip, self.brightness, self.contrast, self.saturation, self.hue)
        )


def augment(
    image: Image.Image,
    preprocessing: Preprocessing,
    augmentation: AugmentationConfig,
    *,
    generator: np.random.Generator,
) -> Tensor:
    """A randomly changed image, preprocessed without `normalize`: (3, size, size) uint8."""
    if augmentation.scale != (1.0, 1.0):
        top, left, height, width = _random_box(image, augmentation, generator)
        image = F.crop(image, top, left, height, width)
    if generator.random() < augmentation.flip:
        image = F.horizontal_flip(image)
    for amount, adjust in (
        (augmentation.brightness, F.adjust_brightness),
        (augmentation.contrast, F.adjust_contrast),
        (augmentation.saturation, F.adjust_saturation),
    ):
        if amount:
            image = adjust(image, float(generator.uniform(1 - amount, 1 + amount)))
    if augmentation.hue:
        image = F.adjust_hue(image, float(generator.uniform(-augmentation.hue, augmentation.hue)))
    return preprocess_uint8(image, preprocessing)


def _random_box(
    image: Image.Image, augmentation: AugmentationConfig, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop with random area and ratio (Szegedy et al. 2014, section 6)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(*augmentation.scale)
        ratio = float(np.exp(generator.uniform(*np.log(augmentation.ratio))))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    return 0, 0, height, width
