"""Captions of images as `Prediction`s."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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
    """Captions of a batch of images, in its order.

    Random searches depend on the seed and the image's id alone.

    Args:
        captioner: in eval mode, on the device of `images`.
        images: stored features, or pixels (B, 3, height, width); for an ensemble, one of these per member.
        image_ids: B ids.
        config: the search; None: the model's default.

    Raises:
        UserError: the search's constraints contain words that are not in the vocabulary, or no caption
            satisfies them.
    """
    vocabulary = captioner.vocabulary
    config = config or captioner.search
    hypotheses = search(
        captioner.decoder,
        captioner.encode_memory(images),
        config,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
        keys=image_keys(image_ids, next(captioner.parameters()).device),
    )
    return to_predictions(hypotheses, image_ids, vocabulary)


def image_keys(image_ids: Sequence[ImageId], device: torch.device) -> Tensor:
    """The keys (B,) of images in a random search."""
    return torch.tensor([image_key(image_id) for image_id in image_ids], device=device)


def image_key(image_id: ImageId) -> int:
    """A hash in [0, 2^63) of an image's id."""
    return int.from_bytes(hashlib.sha256(repr(image_id).encode()).digest()[:8], "big") >> 1


def to_predictions(
    hypotheses: Hypotheses, image_ids: Sequence[ImageId], vocabulary: Vocabulary
) -> list[Prediction]:
    """The best caption of each image as a Prediction, with the others as its alternatives."""
    ids, lengths = hypotheses.ids.tolist(), hypotheses.lengths.tolist()
    logprob, scores, finished = (
        field.tolist() for field in (hypotheses.logprob, hypotheses.scores, hypotheses.finished)
    )
    predictions = []
    for b, image_id in enumerate(image_ids):
        ranked = [
            Prediction(
                image_id=image_id,
                caption=vocabulary.text(ids[b][r]),
                logprob=logprob[b][r],
                score=scores[b][r],
                confidence=math.exp(logprob[b][r] / lengths[b][r]),
                finished=finished[b][r],
                ids=tuple(ids[b][r][: lengths[b][r]]),
            )
            for r in range(len(ids[b]))
            if lengths[b][r]  # a search may find fewer captions than `n_best`
        ]
        if not ranked:
            raise UserError(
                f"image {image_id}: no caption satisfies the search's constraints; allow more words or a wider beam"
            )
        predictions.append(replace(ranked[0], alternatives=tuple(ranked[1:])))
    return predictions
