"""Raw captions of a split -> scores with the signature they can be compared by. Reads text, no images."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.files import fingerprint, write_json
from captioning.metrics import NAMES, DocumentFrequencies, ReferenceCounts, Scores, score
from captioning.records import ImageId
from captioning.tokenizer import tokenize

UNKNOWN = "<unk>"
_UNMATCHED = " "  # stands in for it: no reference holds such a token, since none holds white space
BAD_ENDINGS = frozenset(
    ("a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near")
) | {"to", "is", "are", "am"}
"""Words that leave a caption unfinished."""

_TOKENIZER = "PTB as Stanford's 3.4.1, lower-cased, coco-caption's punctuation dropped"
_VARIANTS = {
    "Bleu": "corpus level, closest reference length, coco-caption's constants",
    "ROUGE_L": "beta 1.2, best precision and best recall taken separately, mean over images",
    "CIDEr": "no stemming, x10, mean over images",
    "CIDEr-D": "clipped counts, length penalty sigma 6 in bigrams, x10, mean over images",
}


class ReferenceSet:
    """The references of one split, tokenized and counted once for any number of evaluations."""

    def __init__(self, references: Mapping[ImageId, Sequence[str]], *, split_name: str) -> None:
        """`references`: raw captions of every image of the split.

        Raises:
            UserError: the split is empty, or an image has no caption to compare with.
        """
        if not references:
            raise UserError(f"split {split_name!r} has no images to score; check the split's name")
        bare = [image_id for image_id, captions in references.items() if not captions]
        if bare:
            raise UserError(
                f"split {split_name!r}: {len(bare)} images have no reference caption ({_first(bare)}); "
                "score a split whose images all have captions"
            )
        self.split_name = split_name
        self.image_ids = list(references)
        self.counts = ReferenceCounts([[tokenize(text) for text in texts] for texts in references.values()])
        self.fingerprint = fingerprint(sorted([str(key), list(texts)] for key, texts in references.items()))
        self.frequencies = DocumentFrequencies.of(self.counts)

    def part(self, image_ids: Sequence[ImageId]) -> ReferenceCounts:
        """The counts of some of the images, in the order given."""
        if list(image_ids) == self.image_ids:
            return self.counts
        tokens = dict(zip(self.image_ids, self.counts.tokens, strict=True))
        return ReferenceCounts([tokens[image_id] for image_id in image_ids])


class Evaluation(NamedTuple):
    """Scores of a split, the signature to compare them by, and what belongs to each image."""

    scores: dict[
        str, float
    ]  # pycocoevalcap's scale: BLEU, ROUGE-L 0..1; CIDEr about 0..10; and `_describe`'s
    signature: dict[str, Any]  # JSON-able
    image_ids: list[ImageId]  # the images scored, in the order of `per_image`
    per_image: Scores

    def lines(self) -> list[str]:
        """One line a number, metrics times 100; where images are missing, coverage beside every number."""
        coverage = self.signature["coverage"]
        beside = (
            "" if coverage["share"] == 1 else f"   on {coverage['scored']} of {coverage['images']} images"
        )
        return [
            f"{name:<16}{value * 100 if name in NAMES or name.endswith('_rate') else value:8.2f}"
            f"{' %' if name.endswith('_rate') else '':<2}{beside}".rstrip()
            for name, value in self.scores.items()
        ]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `scores_SPLIT.json`: scores, signature and each image's own scores, whole or not at all."""
        each = {name: values.tolist() for name, values in self.per_image.per_image.items()}
        write_json(
            path,
            {
                "scores": self.scores,
                "signature": self.signature,
                "per_image": [
                    {"image_id": image_id, **{name: round(values[row], 6) for name, values in each.items()}}
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
    names: Sequence[str] = NAMES,
    frequencies: DocumentFrequencies | None = None,
) -> Evaluation:
    """Score one caption an image against the references of a split, both raw text.

    Args:
        references: of every image of the split; a `ReferenceSet` where it is scored more than once.
        predictions: image id to caption; or pairs, among which an id that occurs twice is found.
        split_name: for the signature and for messages.
        search: the settings that made the captions, for the signature; None where they are not known.
        allow_partial: score the images there are captions for, and pass over captions of other images.
        names: which metrics.
        frequencies: CIDEr's, for example the training split's; else those of the whole split, also where
            only a part of it is scored, so that an image scores the same in either case.

    Raises:
        UserError: an id is missing, unknown or occurs twice; the split is empty or has a bare image.
    """
    captions = _by_id(predictions, split_name)
    if not isinstance(references, ReferenceSet):
        references = ReferenceSet(references, split_name=split_name)
    if references.split_name != split_name:
        raise ValueError(f"references of split {references.split_name!r}, asked to score {split_name!r}")
    image_ids = [image_id for image_id in references.image_ids if image_id in captions]
    known = set(references.image_ids)
    missing = [image_id for image_id in references.image_ids if image_id not in captions]
    extra = [image_id for image_id in captions if image_id not in known]
    _check(split_name, missing, extra, kept=image_ids, allow_partial=allow_partial)

    tokens = [
        [_UNMATCHED if token == UNKNOWN else token for token in tokenize(captions[image_id])]
        for image_id in image_ids
    ]
    scores = score(
        references.part(image_ids), tokens, names=names, frequencies=frequencies or references.frequencies
    )
    signature = {
        "split": split_name,
        "split_fingerprint": references.fingerprint,
        "predictions_fingerprint": fingerprint(sorted([str(key), captions[key]] for key in image_ids)),
        "coverage": {
            "images": len(references.image_ids),
            "scored": len(image_ids),
            "share": len(image_ids) / len(references.image_ids),
            "passed_over": len(extra),
        },
        "tokenizer": _TOKENIZER,
        "variants": {key: text for key, text in _VARIANTS.items() if any(_family(n) == key for n in names)},
        "document_frequencies": (
            f"table {frequencies.fingerprint()} of {frequencies.images} images"
            if frequencies
            else f"references of split {split_name} ({len(references.image_ids)} images)"
        ),
        "clean_up": "none",
        "search": dict(search) if search is not None else None,
        "code": code_version(),
    }
    return Evaluation({**scores.corpus, **_describe(tokens)}, signature, image_ids, scores)


def _family(name: str) -> str:
    return "Bleu" if name.startswith("Bleu") else name


def _by_id(
    predictions: Mapping[ImageId, str] | Iterable[tuple[ImageId, str]], split_name: str
) -> dict[ImageId, str]:
    if isinstance(predictions, Mapping):
        return dict(predictions)
    captions: dict[ImageId, str] = {}
    repeated: list[ImageId] = []
    for image_id, caption in predictions:
        if image_id in captions:
            repeated.append(image_id)
        captions[image_id] = caption
    if repeated:
        raise UserError(
            f"split {split_name!r}: {len(repeated)} image ids are captioned twice ({_first(repeated)}); "
            "give one caption an image"
        )
    return captions


def _check(
    split_name: str,
    missing: Sequence[ImageId],
    extra: Sequence[ImageId],
    *,
    kept: Sequence[ImageId],
    allow_partial: bool,
) -> None:
    """Leaving out the hard images would raise the scores: a part of a split is scored on demand only."""
    if not kept:
        types = {type(key).__name__ for key in missing} | {type(key).__name__ for key in extra}
        hint = f"; ids differ in type: {' and '.join(sorted(types))}" if len(types) > 1 else ""
        raise UserError(
            f"split {split_name!r}: no prediction is of one of its images (it has {_first(missing)}; "
            f"predictions are of {_first(extra) or 'none'}){hint}; give the predictions of this split"
        )
    if allow_partial:
        return
    if missing:
        raise UserError(
            f"split {split_name!r}: {len(missing)} images have no prediction ({_first(missing)}); "
            "caption them, or score a part with --allow-partial"
        )
    if extra:
        raise UserError(
            f"split {split_name!r}: {len(extra)} predictions are of images that are not in it "
            f"({_first(extra)}); give this split's only, or pass over the others with --allow-partial"
        )


def _first(image_ids: Sequence[ImageId]) -> str:
    return ", ".join(map(repr, image_ids[:5])) + (", ..." if len(image_ids) > 5 else "")


def _describe(tokens: Sequence[Sequence[str]]) -> dict[str, float]:
    """What the captions are like: mean length and different words in tokens, the other three as shares."""
    total = sum(map(len, tokens))
    unknown = sum(caption.count(_UNMATCHED) for caption in tokens)
    bad = sum(bool(caption) and caption[-1] in BAD_ENDINGS for caption in tokens)
    return {
        "length": total / len(tokens),
        "vocabulary_used": len({token for caption in tokens for token in caption} - {_UNMATCHED}),
        "unk_rate": unknown / max(total, 1),
        "bad_ending_rate": bad / len(tokens),
        "empty_rate": sum(not caption for caption in tokens) / len(tokens),
    }


def code_version() -> str:
    """The package's version and, in a checkout, the commit, with "-dirty" where files were changed since."""
    try:
        version = importlib.metadata.version("captioning")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{done.stdout.strip()}"
