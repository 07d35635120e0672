"""Upright RGB images to normalised tensors: the preprocessing that is saved with a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 -- registers them, and no others
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from captioning.utils.files import fingerprint

Share = Annotated[float, Field(gt=0, le=1)]
Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

MAX_SIDE = 4096
"""Pixels; of the side of an image before and after cropping."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are resized, cropped and normalised, the same in training, validation and captioning.

    Attributes:
        size: side of the encoder's input in pixels.
        resize: how the image is fitted to a square of side `size / crop`:
            "stretch": both sides are scaled to it, without keeping the proportions;
            "short_side": the shorter side is scaled to it, and the middle is kept;
            "long_side": the longer side is scaled to it, and the rest is filled with the mean colour.
        crop: share of the square's side that is kept around its centre (ImageNet evaluation: 224 / 256 = 0.875).
        mean, std: per channel, for values in 0 .. 1.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    size: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 224
    resize: Literal["stretch", "short_side", "long_side"] = "stretch"
    crop: Share = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"preprocessing.std must be above 0, got {list(self.std)}")
        if self.size / self.crop > MAX_SIDE:
            raise ValueError(f"size / crop must be at most {MAX_SIDE} pixels, got {self.size} / {self.crop}")

    @property
    def side(self) -> int:
        """Side in pixels of the square before its centre is cropped; rounded down, as by timm."""
        return int(self.size / self.crop)

    @property
    def fingerprint(self) -> str:
        """Hash of the settings that the tensors depend on."""
        return fingerprint(asdict(self))


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """The encoder's input for an RGB image: (3, size, size) float32, normalised."""
    return normalize(preprocess_uint8(image, preprocessing), preprocessing)


def preprocess_uint8(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """`preprocess` without `normalize`: (3, size, size) uint8, a quarter of the bytes to transfer."""
    side = preprocessing.side
    fill = [round(255 * value) for value in preprocessing.mean]
    width, height = image.size
    if preprocessing.resize == "stretch":
        image = _resize(image, side, side, preprocessing)
    elif preprocessing.resize == "short_side":
        short = min(width, height)
        # crop before resizing: a 1 x 5000 image would otherwise grow to a gigabyte
        image = F.center_crop(image, [min(height, 2 * short), min(width, 2 * short)])
        width, height = image.size
        image = _resize(image, width * side // short, height * side // short, preprocessing)
    else:
        scale = side / max(width, height)
        image = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)), preprocessing)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        image = F.pad(image, [left, top, side - image.width - left, side - image.height - top], fill=fill)
    image = F.center_crop(image, [preprocessing.size, preprocessing.size])
    return F.pil_to_tensor(image)


def _resize(image: Image.Image, width: int, height: int, preprocessing: Preprocessing) -> Image.Image:
    if image.size == (width, height):
        return image
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    return F.resize(image, [height, width], interpolation=interpolation, antialias=True)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(..., 3, height, width) uint8 -> float32, with the mean subtracted, divided by the standard deviation."""
    scaled = F.to_dtype(pixels, torch.float32, scale=True)
    return F.normalize(scaled, list(preprocessing.mean), list(preprocessing.std))
