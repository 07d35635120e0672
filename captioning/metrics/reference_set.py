"""The references of a split, tokenized and counted, and the checks that predictions fit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from captioning.errors import UserError
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.ngrams import ReferenceCounts
from captioning.records import ImageId
from captioning.text.tokenizers import TOKENIZERS, TokenizerName, refuse_sentences_as_words
from captioning.utils.files import fingerprint


class ReferenceSet:
    """The references of one split, tokenized and counted once for any number of evaluations."""

    def __init__(
        self,
        references: Mapping[ImageId, Sequence[str]],
        *,
        split_name: str,
        tokenizer: TokenizerName = "ptb",
    ) -> None:
        """`references`: raw captions of every image of the split.

        Raises:
            UserError: the split is empty, an image has no reference caption, or whole sentences are words.
        """
        if not references:
            raise UserError(f"split {split_name!r} has no images to score; check the split's name")
        bare = [image_id for image_id, captions in references.items() if not captions]
        if bare:
            raise UserError(
                f"split {split_name!r}: {len(bare)} images have no reference caption ({_first(bare)}); "
                "score a split whose images all have captions"
            )
        self.split_name, self.tokenizer = split_name, tokenizer
        split = TOKENIZERS[tokenizer]
        tokens = [[split(text) for text in texts] for texts in references.values()]
        refuse_sentences_as_words(Counter(chain.from_iterable(chain.from_iterable(tokens))), tokenizer)
        self.image_ids = list(references)
        self.counts = ReferenceCounts(tokens)
        self.fingerprint = fingerprint(sorted([str(key), list(texts)] for key, texts in references.items()))
        self.frequencies = DocumentFrequencies.of(self.counts)

    def subset(self, image_ids: Sequence[ImageId]) -> ReferenceCounts:
        """The counts of some of the images, in the given order."""
        if list(image_ids) == self.image_ids:
            return self.counts
        tokens = dict(zip(self.image_ids, self.counts.tokens, strict=True))
        return ReferenceCounts([tokens[image_id] for image_id in image_ids])

    def match(self, predicted: Mapping[ImageId, str], *, allow_partial: bool) -> list[ImageId]:
        """The images of the split that have a prediction, in the split's order.

        Raises:
            UserError: no image has one; or, unless `allow_partial`, an image has none or a prediction is of another
                image. Leaving out difficult images would raise the scores.
        """
        matched = [image_id for image_id in self.image_ids if image_id in predicted]
        missing = [image_id for image_id in self.image_ids if image_id not in predicted]
        known = set(self.image_ids)
        extra = [image_id for image_id in predicted if image_id not in known]
        split = f"split {self.split_name!r}"
        if not matched:
            types = {type(key).__name__ for key in missing} | {type(key).__name__ for key in extra}
            hint = f"; ids differ in type: {' and '.join(sorted(types))}" if len(types) > 1 else ""
            raise UserError(
                f"{split}: no prediction is of one of its images (it has {_first(missing)}; "
                f"predictions are of {_first(extra) or 'none'}){hint}; give the predictions of this split"
            )
        if missing and not allow_partial:
            raise UserError(
                f"{split}: {len(missing)} images have no prediction ({_first(missing)}); "
                "caption them, or score a part with --allow-partial"
            )
        if extra and not allow_partial:
            raise UserError(
                f"{split}: {len(extra)} predictions are of images that are not in it "
                f"({_first(extra)}); give this split's only, or pass over the others with --allow-partial"
            )
        return matched


def predictions_by_id(
    predictions: Mapping[ImageId, str] | Iterable[tuple[ImageId, str]], split_name: str
) -> dict[ImageId, str]:
    """Image id to caption.

    Raises:
        UserError: an id is repeated.
    """
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


def _first(image_ids: Sequence[ImageId]) -> str:
    return ", ".join(map(repr, image_ids[:5])) + (", ..." if len(image_ids) > 5 else "")
