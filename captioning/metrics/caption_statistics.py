"""Statistics of captions that need no references: length, vocabulary, unknown words, bad endings, novelty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from captioning.text.tokenizers import TOKENIZERS, UNKNOWN_WORD, TokenizerName
from captioning.utils.files import fingerprint
from captioning.utils.progress import progress

UNMATCHED = (
    " "  # replaces <unk> in scored captions: references have no token of white space, so it matches nothing
)

BAD_ENDINGS = frozenset(
    ("a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near")
) | {"to", "is", "are", "am"}
"""Last words of unfinished captions."""

COUNTS = ("length", "vocabulary_used")
"""Statistics that are no rates."""


class TrainingCaptions:
    """The captions of a training split; other captions are novel."""

    def __init__(self, captions: Iterable[str], *, tokenizer: TokenizerName = "ptb") -> None:
        """`captions`: raw text; captions with the same tokens are the same."""
        self.captions = {
            tuple(TOKENIZERS[tokenizer](text))
            for text in progress(captions, desc="training captions", unit="caption", delay=2)
        }
        self.fingerprint = fingerprint(sorted(map(list, self.captions)))


def tokenize_caption(caption: str, tokenizer: TokenizerName = "ptb") -> list[str]:
    """Tokens of a generated caption; `<unk>` becomes a token that matches nothing."""
    return [UNMATCHED if token == UNKNOWN_WORD else token for token in TOKENIZERS[tokenizer](caption)]


def caption_statistics(
    captions: Sequence[Sequence[str]], training: TrainingCaptions | None
) -> dict[str, float]:
    """Mean length in tokens, number of different words, and rates in 0..1 of captions from `tokenize_caption`."""
    tokens = sum(map(len, captions))
    unknown = sum(caption.count(UNMATCHED) for caption in captions)
    bad_endings = sum(bool(caption) and caption[-1] in BAD_ENDINGS for caption in captions)
    statistics = {
        "length": tokens / len(captions),
        "vocabulary_used": len({token for caption in captions for token in caption} - {UNMATCHED}),
        "unk_rate": unknown / max(tokens, 1),
        "bad_ending_rate": bad_endings / len(captions),
        "empty_rate": sum(not caption for caption in captions) / len(captions),
    }
    if training is not None:
        novel = sum(tuple(caption) not in training.captions for caption in captions)
        statistics["novel_rate"] = novel / len(captions)
    return statistics
