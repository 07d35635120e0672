"""Keys of images in random searches."""

import torch

from captioning.captioner.predict import image_key


def test_the_key_of_an_image_is_its_own():
    assert image_key("x.png") == image_key("x.png") != image_key("y.png")
    assert image_key(7) != image_key("7")
    assert 0 <= image_key("x.png") < 2**63 and torch.tensor([image_key(7)]).dtype == torch.int64
