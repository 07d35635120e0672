"""Preprocessing against values computed by hand and torchvision's transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pydantic import TypeAdapter, ValidationError

from captioning.images.preprocessing import Preprocessing, normalize, preprocess, preprocess_uint8
from captioning.images.reading import load_image
from tests.helpers.images import encoded, scene


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("resize", ["stretch", "short_side", "long_side"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_sizes(size: tuple[int, int], resize: str, kind: str):
    image = load_image(io.BytesIO(encoded(scene(*size), kind)))
    assert image.size == size
    tensor = preprocess(image, Preprocessing(size=37, resize=resize, crop=0.9))  # type: ignore[arg-type]
    assert tensor.shape == (3, 37, 37) and tensor.isfinite().all()


def test_normalised_values_equal_those_computed_by_hand():
    image = Image.new("RGB", (5, 5), (255, 0, 51))
    tensor = preprocess(image, Preprocessing(size=3))
    expected = torch.tensor([(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225])
    torch.testing.assert_close(tensor, expected[:, None, None].expand(3, 3, 3), atol=1e-5, rtol=0)


def test_images_of_the_right_size_are_unchanged():
    image = scene(37, 37)
    for resize in ("stretch", "short_side", "long_side"):
        tensor = preprocess_uint8(image, Preprocessing(size=37, resize=resize))  # type: ignore[arg-type]
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))


def test_stretch_keeps_the_corners_and_short_side_the_middle():
    image = Image.new("RGB", (300, 100), (0, 0, 255))
    ImageDraw.Draw(image).rectangle((0, 0, 99, 99), (255, 0, 0))
    ImageDraw.Draw(image).rectangle((200, 0, 299, 99), (0, 255, 0))
    stretched = preprocess_uint8(image, Preprocessing(size=30))
    assert stretched[:, 15, 2].tolist() == [255, 0, 0] and stretched[:, 15, 27].tolist() == [0, 255, 0]
    middle = preprocess_uint8(image, Preprocessing(size=30, resize="short_side", crop=0.8))
    assert (middle.flatten(1).unique(dim=1) == torch.tensor([[0], [0], [255]])).all()
    whole = preprocess_uint8(image, Preprocessing(size=30, resize="long_side"))
    assert whole[:, 15, 2].tolist() == [255, 0, 0] and whole[:, 15, 27].tolist() == [0, 255, 0]
    assert whole[:, 2, 15].tolist() == [124, 116, 104]  # the mean colour above and below


def test_short_side_with_crop_equals_torchvisions_imagenet_evaluation():
    from torchvision.models import ResNet18_Weights

    image = scene(97, 61)
    expected = ResNet18_Weights.IMAGENET1K_V1.transforms()(image)
    ours = preprocess(
        image, Preprocessing(size=224, resize="short_side", crop=0.875, interpolation="bilinear")
    )
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)  # a level of 255 is 0.017


@pytest.mark.parametrize("size", [(500, 375), (61, 97), (224, 224), (190, 100)])
@pytest.mark.parametrize(("side", "crop"), [(224, 0.9), (260, 0.89), (288, 0.95), (518, 1.0)])
def test_short_side_with_crop_equals_timms_evaluation(size: tuple[int, int], side: int, crop: float):
    """To the bit: a side rounded otherwise moves the whole picture by half a pixel."""
    create_transform = pytest.importorskip("timm.data").create_transform
    half = (0.5, 0.5, 0.5)
    expected = create_transform(side, crop_pct=crop, interpolation="bicubic", mean=half, std=half)(
        scene(*size)
    )
    settings = Preprocessing(size=side, resize="short_side", crop=crop, mean=half, std=half)
    torch.testing.assert_close(preprocess(scene(*size), settings), expected, atol=1e-5, rtol=0)


def test_settings_are_checked():
    adapter = TypeAdapter(Preprocessing)
    assert adapter.validate_python({"size": 64, "mean": [0.5, 0.5, 0.5]}).mean == (0.5, 0.5, 0.5)
    for wrong in ({"size": 0}, {"crop": 1.5}, {"sise": 64}, {"std": [1, 0, 1]}, {"resize": "squash"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    assert Preprocessing().fingerprint != Preprocessing(size=225).fingerprint


def test_normalize_a_batch():
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    preprocessing = Preprocessing()
    torch.testing.assert_close(normalize(pixels, preprocessing)[1], normalize(pixels[1], preprocessing))
