"""Raw captions of a split -> scores with the signature they can be compared by. Reads text, no images."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from captioning.errors import UserError
from captioning.metrics import NAMES, DocumentFrequencies, ReferenceCounts, Scores, score
from captioning.metrics.coco_names import to_coco_name, to_coco_names
from captioning.metrics.diversity import diversity_scores
from captioning.metrics.further import further
from captioning.records import ImageId
from captioning.text.tokenizer import tokenize
from captioning.utils.files import fingerprint, write_json

UNKNOWN = "<unk>"
_UNMATCHED = " "  # stands in for it: no reference holds such a token, since none holds white space
BAD_ENDINGS = frozenset(
    ("a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near")
) | {"to", "is", "are", "am"}
"""Words that leave a caption unfinished."""

_TOKENIZER = "PTB as Stanford's 3.4.1, lower-cased, coco-caption's punctuation dropped"
_VARIANTS = {
    "BLEU": "corpus level, closest reference length, coco-caption's constants",
    "ROUGE-L": "beta 1.2, best precision and best recall taken separately, mean over images",
    "CIDEr": "no stemming, x10, mean over images",
    "CIDEr-D": "clipped counts, length penalty sigma 6 in bigrams, x10, mean over images",
}
_DIVERSITY_VARIANTS = {
    "Div": "Div-1, Div-2: different n-grams among an image's captions over their tokens, mean over images",
    "mBLEU-4": "corpus BLEU-4 of each image's k-th caption against its others, mean over k",
    "self-CIDEr": "Wang and Chan 2019: eigenvalues of the matrix of plain CIDEr, with CIDEr's document "
    "frequencies; -log_n(sqrt(largest) / sum of square roots), mean over images",
    "oracle": "each metric of the captions that are best by it in their image; corpus BLEU of the chosen",
    "all": "of all captions of all images, not only of the one scored",
}
_COUNTS = ("length", "vocabulary_used")


class TrainingCaptions:
    """Captions of a training split: what a caption has to differ from to be a new one."""

    def __init__(self, captions: Iterable[str]) -> None:
        """`captions`: raw text; two that have the same tokens are the same caption."""
        self.captions = {
            tuple(tokenize(text))
            for text in tqdm(captions, desc="training captions", leave=False, disable=None, delay=2)
        }
        self.fingerprint = fingerprint(sorted(map(list, self.captions)))


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

    # pycocoevalcap's scale: BLEU, ROUGE-L 0..1; CIDEr about 0..10; then what the captions are like
    scores: dict[str, float]
    signature: dict[str, Any]  # JSON-able
    image_ids: list[ImageId]  # the images scored, in the order of `per_image`
    per_image: Scores

    def lines(self) -> list[str]:
        """One line a number, metrics times 100; where images are missing, coverage beside every number."""
        coverage = self.signature["coverage"]
        beside = (
            "" if coverage["share"] == 1 else f"   on {coverage['scored']} of {coverage['images']} images"
        )
        width = max(16, *(len(name) + 2 for name in self.scores))
        rows = [(name, *shown(name, value)) for name, value in self.scores.items()]
        return [f"{name:<{width}}{value:8.2f}{unit:<2}{beside}".rstrip() for name, value, unit in rows]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `scores_SPLIT.json`: scores, signature and each image's own scores, whole or not at all."""
        each = {to_coco_name(name): values.tolist() for name, values in self.per_image.per_image.items()}
        write_json(
            path,
            {
                "scores": to_coco_names(self.scores),
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
    others: Sequence[str] = (),
    captions: Mapping[ImageId, Sequence[str]] | None = None,
    training: TrainingCaptions | None = None,
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
        others: further metrics, of `captioning.metrics.further.FURTHER`; those that cannot be had are named
            in the signature's notes.
        captions: all captions of each image, as many of each and two at least: adds their diversity.
        training: adds the share of captions that are not among these.

    Raises:
        UserError: an id is missing, unknown or occurs twice; the split is empty or has a bare image; an image has
            no `captions` or more than another.
    """
    predicted = _by_id(predictions, split_name)
    if not isinstance(references, ReferenceSet):
        references = ReferenceSet(references, split_name=split_name)
    if references.split_name != split_name:
        raise ValueError(f"references of split {references.split_name!r}, asked to score {split_name!r}")
    image_ids = [image_id for image_id in references.image_ids if image_id in predicted]
    known = set(references.image_ids)
    missing = [image_id for image_id in references.image_ids if image_id not in predicted]
    extra = [image_id for image_id in predicted if image_id not in known]
    _check(split_name, missing, extra, kept=image_ids, allow_partial=allow_partial)

    own, weights = references.part(image_ids), frequencies or references.frequencies
    tokens = [_tokens(predicted[image_id]) for image_id in image_ids]
    scores = score(own, tokens, names=names, frequencies=weights)
    found = further(own.tokens, tokens, names=others)
    notes = list(found.notes)
    if weights.images == 1 and any(name.startswith("CIDEr") for name in names):
        notes.append("CIDEr of a single image is 0: all n-grams are in all images, so none has any weight")
    variants = {key: text for key, text in _VARIANTS.items() if any(_family(n) == key for n in names)}
    variants |= found.variants
    per_image = scores._replace(
        corpus=scores.corpus | found.corpus,
        per_image=scores.per_image | found.per_image,
        summed=found.summed,
    )
    described = _describe(tokens, training)
    if captions is not None:
        sets = _sets(captions, image_ids, split_name)
        differ = diversity_scores(own, sets, names=names, frequencies=weights)
        of_all = _describe([caption for several in sets for caption in several], training)
        described |= differ.corpus | {f"all_{name}": value for name, value in of_all.items()}
        per_image = per_image._replace(
            corpus=per_image.corpus | differ.corpus,
            per_image=per_image.per_image | differ.per_image,
            summed={**per_image.summed, **differ.summed},
        )
        variants |= _DIVERSITY_VARIANTS
    signature = {
        "split": split_name,
        "split_fingerprint": references.fingerprint,
        "predictions_fingerprint": fingerprint(sorted([str(key), predicted[key]] for key in image_ids)),
        "coverage": {
            "images": len(references.image_ids),
            "scored": len(image_ids),
            "share": len(image_ids) / len(references.image_ids),
            "passed_over": len(extra),
        },
        "captions_per_image": len(sets[0]) if captions is not None else 1,
        "tokenizer": _TOKENIZER,
        "variants": variants,
        "document_frequencies": (
            f"table {frequencies.fingerprint()} of {frequencies.images} images"
            if frequencies
            else f"references of split {split_name} ({len(references.image_ids)} images)"
        ),
        "training_captions": f"{training.fingerprint} of {len(training.captions)} captions"
        if training
        else None,
        "clean_up": "none",
        "search": dict(search) if search is not None else None,
        "notes": notes,
        "code": code_version(),
    }
    return Evaluation(scores.corpus | found.corpus | described, signature, image_ids, per_image)


def shown(name: str, value: float) -> tuple[float, str]:
    """A number of `Evaluation.scores` as it is printed: metrics times 100, shares in %; and its unit."""
    if name.endswith("_rate"):
        return 100 * value, " %"
    return (value if name.removeprefix("all_") in _COUNTS else 100 * value), ""


def _family(name: str) -> str:
    return "BLEU" if name.startswith("BLEU") else name


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


def _tokens(caption: str) -> list[str]:
    return [_UNMATCHED if token == UNKNOWN else token for token in tokenize(caption)]


def _sets(
    captions: Mapping[ImageId, Sequence[str]], image_ids: Sequence[ImageId], split_name: str
) -> list[list[list[str]]]:
    """Tokens of every caption of each image, as many of each."""
    sizes = [len(captions.get(image_id, ())) for image_id in image_ids]
    if min(sizes) != max(sizes) or sizes[0] < 2:
        raise UserError(
            f"split {split_name!r}: diversity needs as many captions of each image, and two at least; "
            f"there are {min(sizes)} to {max(sizes)}"
        )
    return [[_tokens(text) for text in captions[image_id]] for image_id in image_ids]


def _describe(tokens: Sequence[Sequence[str]], training: TrainingCaptions | None) -> dict[str, float]:
    """What the captions are like: mean length and different words in tokens, the others as shares."""
    total = sum(map(len, tokens))
    unknown = sum(caption.count(_UNMATCHED) for caption in tokens)
    bad = sum(bool(caption) and caption[-1] in BAD_ENDINGS for caption in tokens)
    described = {
        "length": total / len(tokens),
        "vocabulary_used": len({token for caption in tokens for token in caption} - {_UNMATCHED}),
        "unk_rate": unknown / max(total, 1),
        "bad_ending_rate": bad / len(tokens),
        "empty_rate": sum(not caption for caption in tokens) / len(tokens),
    }
    if training is not None:
        described["novel_rate"] = sum(tuple(each) not in training.captions for each in tokens) / len(tokens)
    return described


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
