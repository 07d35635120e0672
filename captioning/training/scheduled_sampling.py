"""Scheduled sampling: which words a decoder reads in training, the caption's or its own. Knows any Decoder, no loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captioning.models.decoders.base import Decoder
from captioning.text.vocabulary import Vocabulary

_TOGETHER = 1 << 12
"""Positions whose logits are held at a time: no gradient is wanted of them, so they need not all be there at once."""


@torch.no_grad()
def own_words(
    decoder: Decoder,
    memory: Any,
    words: Tensor,
    batch_sizes: Sequence[int],
    *,
    vocabulary: Vocabulary,
    probability: float,
    passes: int,
) -> Tensor:
    """`words` with some of them, each by chance of `probability`, the model's own choice (Bengio et al. 2015).

    The same way for every decoder, by its parallel `forward`: the words are read, at each place a next word is
    drawn from the distribution that is found there, and some take the place of the caption's. In one pass the
    choice is made behind the caption's words (Mihaylova and Martins 2019). With more passes the mixed words are
    read again and the same places filled anew, by the same chance (after Duckworth et al. 2019): n passes give the
    first n own words of a caption that a choice word by word would give, as Bengio et al. make it; T passes give
    all, but for dropout, which is drawn anew in each pass. Differs: an own word is never one behind which no
    search would go on (`<pad>`, `<start>`, `<unk>`, `<end>`). No gradient flows through the choice.

    Args:
        words: (B, K, T) int64, what is read. `<start>`, `<end>` and `<pad>` are never replaced.
        batch_sizes: as for `Decoder.forward`.

    Random numbers are torch's own; the loop sets them by (seed, step, rank).
    """
    own = torch.rand(words.shape, device=words.device) < probability
    for kept in (vocabulary.start, vocabulary.end, vocabulary.pad):
        own &= words != kept
    chance = torch.rand(words.shape, dtype=torch.float64, device=words.device)
    mixed = words
    for _ in range(passes):
        hidden = decoder(mixed, memory, batch_sizes).hidden[:, :, :-1][
            own[..., 1:]
        ]  # (M, H), each before an own word
        drawn = [
            _drawn(decoder.logits(part), at, vocabulary)
            for part, at in zip(hidden.split(_TOGETHER), chance[own].split(_TOGETHER), strict=True)
        ]
        mixed = words.masked_scatter(own, torch.cat(drawn))
    return mixed


def _drawn(logits: Tensor, chance: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(M,) int64 words, the first whose cumulated probability is above `chance` (M,), 0 to 1."""
    never = torch.tensor([*vocabulary.special_tokens.suppress_ids, vocabulary.end], device=logits.device)
    total = logits.double().index_fill(1, never, float("-inf")).softmax(1).cumsum(1)
    # the last total may fall short of 1, and words that are never drawn may stand there: scaled, none is met
    return torch.searchsorted(total, (chance * total[:, -1])[:, None], right=True)[:, 0]
