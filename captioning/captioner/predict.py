"""Images -> Predictions: a captioner and a search. Knows ids only to turn them into words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.errors import UserError
from captioning.generation import SearchConfig, constraint_ids, search
from captioning.records import ImageId, Prediction
from captioning.tensors import Hypotheses
from captioning.text.vocabulary import Vocabulary


@torch.inference_mode()
def generate_captions(
    captioner: Captioner | EnsembleCaptioner,
    images: Any,
    image_ids: Sequence[ImageId],
    *,
    config: SearchConfig | None = None,
) -> list[Prediction]:
    """Captions of a batch, in its order. What is random in them depends on the seed and the image's id alone.

    Args:
        captioner: in eval mode, on the device of `images`.
        images: stored features, or pixels (B, 3, height, width); of an ensemble, one of these for each member.
        image_ids: B ids.
        config: the search; None: the model's own default.

    Raises:
        UserError: the search's rules name words that the model does not know, or leave no caption.
    """
    vocabulary = captioner.vocabulary
    config = config or captioner.search
    found = search(
        captioner.decoder,
        captioner.encode_memory(images),
        config,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
        keys=torch.tensor(
            [key(image_id) for image_id in image_ids], device=next(captioner.parameters()).device
        ),
    )
    return predictions(found, image_ids, vocabulary)


def key(image_id: ImageId) -> int:
    """A number in [0, 2^63) that tells an image from the others in a random search."""
    return int.from_bytes(hashlib.sha256(repr(image_id).encode()).digest()[:8], "big") >> 1


def predictions(found: Hypotheses, image_ids: Sequence[ImageId], vocabulary: Vocabulary) -> list[Prediction]:
    """The hypotheses of each image as a Prediction: the best, with the others as its alternatives."""
    words, lengths, logprob, scores, finished = (
        part.tolist() for part in (found.ids, found.lengths, found.logprob, found.scores, found.finished)
    )
    results = []
    for b, image_id in enumerate(image_ids):
        ranked = [
            Prediction(
                image_id=image_id,
                caption=" ".join(vocabulary.decode(words[b][r])),
                logprob=logprob[b][r],
                score=scores[b][r],
                confidence=math.exp(logprob[b][r] / lengths[b][r]),
                finished=finished[b][r],
            )
            for r in range(len(words[b]))
            if lengths[b][r]  # a search may find fewer than were asked for
        ]
        if not ranked:
            raise UserError(
                f"image {image_id}: no caption that the search's rules allow was found; allow more words or a "
                "wider beam"
            )
        results.append(replace(ranked[0], alternatives=tuple(ranked[1:])))
    return results
