"""Images -> Predictions: a captioner and a search. Knows ids only to turn them into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captioning.captioner import Captioner
from captioning.records import ImageId, Prediction
from captioning.search import SearchConfig, search
from captioning.tensors import Features, Hypotheses
from captioning.vocabulary import Vocabulary


@torch.inference_mode()
def describe(
    captioner: Captioner,
    images: Features | Tensor,
    image_ids: Sequence[ImageId],
    *,
    config: SearchConfig | None = None,
) -> list[Prediction]:
    """Captions of a batch, in its order.

    Args:
        captioner: in eval mode, on the device of `images`.
        images: stored features, or pixels (B, 3, height, width).
        image_ids: B ids.
        config: the search; None: the model's own default.
    """
    vocabulary = captioner.vocabulary
    memory = captioner.decoder.remember(captioner.features(images))
    found = search(
        captioner.decoder,
        memory,
        config or captioner.config.search,
        start=vocabulary.start,
        end=vocabulary.end,
        unwanted=vocabulary.unwanted,
    )
    return predictions(found, image_ids, vocabulary)


def predictions(found: Hypotheses, image_ids: Sequence[ImageId], vocabulary: Vocabulary) -> list[Prediction]:
    """The hypotheses of each image as a Prediction: the best, with the others as its alternatives."""
    words, lengths, logp, scores, finished = (
        part.tolist() for part in (found.words, found.lengths, found.logp, found.scores, found.finished)
    )
    results = []
    for b, image_id in enumerate(image_ids):
        ranked = [
            Prediction(
                image_id=image_id,
                caption=" ".join(vocabulary.decode(words[b][r])),
                logp=logp[b][r],
                score=scores[b][r],
                confidence=math.exp(logp[b][r] / lengths[b][r]),
                finished=finished[b][r],
            )
            for r in range(len(words[b]))
            if lengths[b][r]  # a search may find fewer than were asked for
        ]
        results.append(replace(ranked[0], alternatives=tuple(ranked[1:])))
    return results
