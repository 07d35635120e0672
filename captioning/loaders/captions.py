"""Captions as token ids: all captions of a split in flat arrays, and padding to batches."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary


class EncodedCaptions(NamedTuple):
    """Token ids of all captions of some records, in flat arrays that worker processes share without copies.

    Image i has the captions `image_offsets[i] .. image_offsets[i + 1] - 1`; caption j has the ids
    `ids[caption_offsets[j] : caption_offsets[j + 1]]`.
    """

    ids: np.ndarray  # int32
    caption_offsets: np.ndarray  # int64
    image_offsets: np.ndarray  # int64
    num_truncated: int  # captions longer than the limit

    @classmethod
    def from_records(
        cls, records: Sequence[ImageRecord], vocabulary: Vocabulary, *, max_length: int
    ) -> EncodedCaptions:
        """`<start> tokens <end>` of every caption, with at most `max_length` tokens; longer ones have no `<end>`."""
        ids, caption_offsets, image_offsets = array("i"), array("q", [0]), array("q", [0])
        num_truncated = 0
        for record in records:
            for caption in record.captions:
                caption_ids = vocabulary.encode(vocabulary.tokenize(caption), max_length=max_length)
                num_truncated += caption_ids[-1] != vocabulary.end
                ids.extend(caption_ids)
                caption_offsets.append(len(ids))
            image_offsets.append(len(caption_offsets) - 1)
        return cls(
            ids=np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32),
            caption_offsets=np.frombuffer(caption_offsets, np.int64),
            image_offsets=np.frombuffer(image_offsets, np.int64),
            num_truncated=num_truncated,
        )

    def sample(self, image: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """Numbers of at most `count` captions of an image, drawn without replacement, longest first."""
        captions = np.arange(self.image_offsets[image], self.image_offsets[image + 1])
        if len(captions) > count:
            captions = generator.choice(captions, count, replace=False)
        lengths = self.caption_offsets[captions + 1] - self.caption_offsets[captions]
        return captions[np.argsort(-lengths, kind="stable")]

    def sample_ids(self, image: int, count: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Ids of the captions that `sample` draws."""
        return [self.caption(number) for number in self.sample(image, count, generator)]

    def caption(self, number: int) -> np.ndarray:
        """Ids of one caption."""
        return self.ids[self.caption_offsets[number] : self.caption_offsets[number + 1]]

    def max_lengths(self) -> np.ndarray:
        """(images,) number of ids of each image's longest caption."""
        return np.maximum.reduceat(np.diff(self.caption_offsets), self.image_offsets[:-1])


def pad_captions(
    captions: Sequence[Sequence[np.ndarray]], *, captions_per_image: int, pad: int
) -> tuple[Tensor, tuple[int, ...], int]:
    """Captions of each image, longest first -> `ids` (B, K, T + 1), `batch_sizes` and `tokens` of a `Batch`."""
    length = max(len(ids) for of_image in captions for ids in of_image)
    padded = np.full((len(captions), captions_per_image, length), pad, np.int64)
    counts = np.zeros((len(captions), length - 1), np.int64)  # captions of an image with more than t targets
    tokens = 0
    for b, of_image in enumerate(captions):
        for k, ids in enumerate(of_image):
            padded[b, k, : len(ids)] = ids
            counts[b, : len(ids) - 1] += 1
            tokens += len(ids) - 1
    return torch.from_numpy(padded), tuple(int(count) for count in counts.max(0)), tokens
