"""Evaluation of a split: raw captions in; scores, and a signature of everything they depend on, out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.metrics import (
    NAMES,
    DocumentFrequencies,
    Metric,
    MetricInput,
    MetricScore,
    Scores,
    Unavailable,
    get_metric,
)
from captioning.metrics.caption_statistics import (
    COUNTS,
    TrainingCaptions,
    caption_statistics,
    tokenize_caption,
)
from captioning.metrics.coco_names import to_coco_name, to_coco_names
from captioning.metrics.diversity import DESCRIPTIONS, diversity_scores
from captioning.metrics.reference_set import ReferenceSet, predictions_by_id
from captioning.records import ImageId
from captioning.text.tokenizers import TOKENIZER_DESCRIPTIONS
from captioning.utils.code_version import code_version
from captioning.utils.files import fingerprint, write_json

CIDER_D_NOTE = 'What papers and pycocoevalcap (class Cider) call "CIDEr" is CIDEr-D.'
"""Printed below tables with CIDEr or CIDEr-D."""


class Evaluation(NamedTuple):
    """Scores of a split with their signature and the scores of each image."""

    # pycocoevalcap's scale (BLEU, ROUGE-L 0..1; CIDEr 0..10), then statistics of the captions
    scores: dict[str, float]
    signature: dict[str, Any]  # JSON-able
    image_ids: list[ImageId]  # the images scored, in the order of `metrics`
    metrics: Scores
    scales: dict[str, float]  # tables show scores times this

    def printed(self, name: str) -> tuple[float, str]:
        """A score as tables show it, and its unit."""
        return self.scales[name] * self.scores[name], " %" if name.endswith("_rate") else ""

    def lines(self) -> list[str]:
        """One line for each score; if images are missing, the coverage stands on every line."""
        coverage = self.signature["coverage"]
        suffix = (
            "" if coverage["share"] == 1 else f"   on {coverage['scored']} of {coverage['images']} images"
        )
        width = max(16, *(len(name) + 2 for name in self.scores))
        rows = [(name, *self.printed(name)) for name in self.scores]
        return [f"{name:<{width}}{value:8.2f}{unit:<2}{suffix}".rstrip() for name, value, unit in rows]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `scores_SPLIT.json` atomically: scores and scores of each image under COCO's names, signature."""
        columns = {to_coco_name(name): values.tolist() for name, values in self.metrics.per_image.items()}
        write_json(
            path,
            {
                "scores": to_coco_names(self.scores),
                "signature": self.signature,
                "per_image": [
                    {
                        "image_id": image_id,
                        **{name: round(values[row], 6) for name, values in columns.items()},
                    }
                    for row, image_id in enumerate(self.image_ids)
                ],
            },
        )


def evaluate(
    references: Mapping[ImageId, Sequence[str]] | ReferenceSet,
    predictions: Mapping[ImageId, str] | Iterable[tuple[ImageId, str]],
    *,
    split_name: str,
    search: Mapping[str, Any] | None,
    allow_partial: bool = False,
    metrics: Sequence[str | Metric] = NAMES,
    frequencies: DocumentFrequencies | None = None,
    captions: Mapping[ImageId, Sequence[str]] | None = None,
    training: TrainingCaptions | None = None,
    missing: int = 0,
) -> Evaluation:
    """Score one caption an image against the references of a split, both raw text.

    Args:
        references: of every image of the split; a `ReferenceSet` for several evaluations or another tokenizer.
        predictions: image id to caption; or pairs, among which a repeated id is an error.
        split_name: for the signature and for messages.
        search: the search settings that made the captions, for the signature; None if they are not known.
        allow_partial: score only the images with captions, and ignore captions of other images.
        metrics: names or metrics, see `get_metric`. Those unavailable here are left out, with a note in the signature.
        frequencies: document frequencies for CIDEr; by default the whole split's, also if a part of it is scored.
        captions: n >= 2 captions of each image, the same n for all: adds their diversity.
        training: adds the rate of captions that are not among these, which have the references' tokenizer.
        missing: number of images that belong to the split but have no file; for the coverage.

    Raises:
        UserError: a missing, unknown or repeated id, an empty split, no references, unequal numbers of `captions`.
        ValueError: an unknown metric.
    """
    predicted = predictions_by_id(predictions, split_name)
    if not isinstance(references, ReferenceSet):
        references = ReferenceSet(references, split_name=split_name)
    if references.split_name != split_name:
        raise ValueError(f"references of split {references.split_name!r}, asked to score {split_name!r}")
    image_ids = references.match(predicted, allow_partial=allow_partial)
    chosen = [get_metric(metric) for metric in metrics]
    counts, weights = references.subset(image_ids), frequencies or references.frequencies
    tokens = [tokenize_caption(predicted[image_id], references.tokenizer) for image_id in image_ids]
    results, notes = _score_available(MetricInput(counts, tokens, frequencies=weights), chosen)
    scores, statistics = Scores.of(results), caption_statistics(tokens, training)
    descriptions = _descriptions(chosen, results)
    if captions is not None:
        sets = _caption_sets(captions, image_ids, references)
        default = [metric for metric in chosen if metric.name in NAMES]  # METEOR n times would take too long
        scores |= diversity_scores(counts, sets, metrics=default, frequencies=weights)
        of_all = caption_statistics(list(chain.from_iterable(sets)), training)
        statistics |= {f"all_{name}": value for name, value in of_all.items()}
        descriptions |= DESCRIPTIONS
    signature = _signature(references, image_ids, predicted, captions, missing) | {
        "variants": descriptions,
        "document_frequencies": _frequencies_text(frequencies, references),
        "training_captions": training and f"{training.fingerprint} of {len(training.captions)} captions",
        "search": None if search is None else dict(search),
        "notes": notes,
    }
    values = scores.corpus | statistics
    return Evaluation(values, signature, image_ids, scores, _scales(scores, statistics, chosen))


def _score_available(
    captions: MetricInput, metrics: Sequence[Metric]
) -> tuple[dict[str, MetricScore], list[str]]:
    """The scores of the metrics that are available here, and a note for each of the others and each warning."""
    results, notes = {}, []
    for metric in metrics:
        try:
            result = results[metric.name] = metric.score(captions)
            notes += [result.note] if result.note else []
        except Unavailable as reason:
            notes.append(str(reason))
    return results, list(dict.fromkeys(notes))


def _descriptions(metrics: Sequence[Metric], results: Mapping[str, MetricScore]) -> dict[str, str]:
    """What each score depends on; BLEU-1 to BLEU-4 share the entry "BLEU"."""
    return {
        re.sub(r"-\d$", "", metric.name): ", ".join(filter(None, [metric.description, result.details]))
        for metric in metrics
        if (result := results.get(metric.name))
    }


def _scales(scores: Scores, statistics: Mapping[str, float], metrics: Sequence[Metric]) -> dict[str, float]:
    """The factor by which tables multiply each score: a metric's scale, 100 for rates, 1 for counts."""
    by_name = {metric.name: metric.scale for metric in metrics}
    scales = {name: by_name.get(name.removeprefix("oracle-"), 100.0) for name in scores.corpus}
    return scales | {name: 1.0 if name.removeprefix("all_") in COUNTS else 100.0 for name in statistics}


def _signature(
    references: ReferenceSet,
    scored: Sequence[ImageId],
    predicted: Mapping[ImageId, str],
    captions: Mapping[ImageId, Sequence[str]] | None,
    missing: int,
) -> dict[str, Any]:
    """The part of the signature that describes the images, the captions and the code."""
    images = len(references.image_ids) + missing
    all_captions = {key: captions[key] if captions else [predicted[key]] for key in scored}
    return {
        "split": references.split_name,
        "split_fingerprint": references.fingerprint,
        "predictions_fingerprint": fingerprint(
            sorted([str(key), *texts] for key, texts in all_captions.items())
        ),
        "coverage": {
            "images": images,
            "scored": len(scored),
            "share": len(scored) / images,
            "passed_over": len(predicted) - len(scored),
        },
        "captions_per_image": len(all_captions[scored[0]]),
        "tokenizer": TOKENIZER_DESCRIPTIONS[references.tokenizer],
        "clean_up": "none",
        "code": code_version(),
    }


def _frequencies_text(frequencies: DocumentFrequencies | None, references: ReferenceSet) -> str:
    if frequencies:
        return f"table {frequencies.fingerprint()} of {frequencies.num_images} images"
    return f"references of split {references.split_name} ({len(references.image_ids)} images)"


def _caption_sets(
    captions: Mapping[ImageId, Sequence[str]], image_ids: Sequence[ImageId], references: ReferenceSet
) -> list[list[list[str]]]:
    """Tokens of the n captions of each image."""
    sizes = [len(captions.get(image_id, ())) for image_id in image_ids]
    if min(sizes) != max(sizes) or sizes[0] < 2:
        raise UserError(
            f"split {references.split_name!r}: diversity needs as many captions of each image, and two at least; "
            f"there are {min(sizes)} to {max(sizes)}"
        )
    return [
        [tokenize_caption(text, references.tokenizer) for text in captions[image_id]]
        for image_id in image_ids
    ]
