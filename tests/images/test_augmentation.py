"""Random augmentation: frequencies, sizes and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from captioning.images.augmentation import AugmentationConfig, augment
from captioning.images.preprocessing import Preprocessing, preprocess_uint8
from tests.helpers.images import scene


def test_settings_are_checked():
    for wrong in ({"flip": 2}, {"scale": [0.9, 0.5]}, {"hue": 0.7}, {"flipp": 0.5}):
        with pytest.raises(ValidationError):
            TypeAdapter(AugmentationConfig).validate_python(wrong)


def test_default_augmentation_changes_nothing():
    generator = np.random.default_rng(0)
    preprocessing = Preprocessing(size=37)
    assert AugmentationConfig().is_identity
    same = augment(scene(), preprocessing, AugmentationConfig(), generator=generator)
    assert same.dtype == torch.uint8 and torch.equal(same, preprocess_uint8(scene(), preprocessing))


def test_frequency_of_flips():
    preprocessing = Preprocessing(size=7)
    plain = preprocess_uint8(scene(), preprocessing).int()
    generator = np.random.default_rng(0)
    flipped = 0
    for _ in range(200):
        tensor = augment(scene(), preprocessing, AugmentationConfig(flip=0.3), generator=generator).int()
        if not torch.equal(tensor, plain):
            torch.testing.assert_close(tensor, plain.flip(-1), atol=3, rtol=0)
            flipped += 1
    assert 40 <= flipped <= 80


def test_equal_generators_give_equal_images():
    config = AugmentationConfig(
        flip=0.5, scale=(0.3, 0.9), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1
    )
    assert not config.is_identity
    once, again, other = (
        augment(scene(), Preprocessing(size=37), config, generator=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == (3, 37, 37) and once.dtype == torch.uint8


def test_area_of_random_crops():
    """Pixel colours encode coordinates, so the size of the crop can be read from the result."""
    y, x = np.mgrid[0:200, 0:200]
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    preprocessing = Preprocessing(size=50, mean=(0, 0, 0), std=(1, 1, 1))
    generator = np.random.default_rng(4)
    for _ in range(20):
        tensor = augment(image, preprocessing, AugmentationConfig(scale=(0.25, 0.36)), generator=generator)
        width, height = (float(tensor[c].max() - tensor[c].min()) + 1 for c in (0, 1))
        assert 0.22 < width * height / 200**2 < 0.38
        assert 0.7 < width / height < 1.4
