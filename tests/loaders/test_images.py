"""Images of a batch: none is mirrored whose caption says left or right."""

import numpy as np

from captioning.images.augmentation import AugmentationConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.images import PixelImages, RandomMirroring, StoredImages, mentions_left_right
from captioning.records import ImageRecord


def test_an_image_whose_caption_names_a_side_is_not_mirrored(tmp_path):
    texts = [
        "a dog on the LEFT", "a dog", "the right-hand side", "bright light, leftovers", "a leftmost cup",
        "all right", "copyright",
    ]  # fmt: skip
    found = [ImageRecord(n, f"{tmp_path}/{n}.png", ("a cat", text), "train") for n, text in enumerate(texts)]
    mask = mentions_left_right(found)
    assert mask.tolist() == [True, False, True, False, True, True, False]
    from PIL import Image

    for record in found:  # dark on its left, bright on its right
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, 4:] = 255
        Image.fromarray(pixels).save(record.path)
    images = PixelImages(
        [record.path for record in found],
        Preprocessing(size=8),
        augmentation=AugmentationConfig(flip=1.0),
        seed=0,
        fixed=mask,
    )
    pixels = images(np.arange(len(found)), 0)
    assert (pixels[:, 0, 4, 0] > pixels[:, 0, 4, 7]).tolist() == [not side for side in mask]

    class Store:
        def places(self, ids):
            return np.asarray(ids)

        def rows_at(self, places, *, views):
            return np.array([[[view]] for view in views], np.float32)

    stored = StoredImages(Store(), range(len(found)), RandomMirroring(0, mask))
    seen = np.array([stored(np.arange(len(found)), epoch).regions.flatten().tolist() for epoch in range(40)])
    assert not seen[:, mask].any() and 0.3 < seen[:, ~mask].mean() < 0.7
