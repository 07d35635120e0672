"""Made-up references and captions as ids, and CIDEr-D by the paper's formulas, an n-gram at a time."""

import math
from collections import Counter

import numpy as np

from captioning.loaders.captions import EncodedCaptions

START, END, WORDS = 1, 2, 17


IMAGES, B, K, T = 23, 5, 3, 11


def drawn(seed=0):
    """References of 23 images, 1 to 7 each, some cut; and K captions of B images, some unfinished, some alike."""
    rng = np.random.default_rng(seed)

    def caption(most):
        # few words, so that they repeat
        words = [*rng.integers(3, WORDS, rng.integers(0, most)).tolist()]
        return words + [END] * int(rng.random() < 0.8 or not words)

    references = [[caption(13) for _ in range(rng.integers(1, 8))] for _ in range(IMAGES)]
    images = rng.choice(IMAGES, B, replace=False)
    captions = [[caption(T)[:T] for _ in range(K)] for _ in images]
    for b, image in enumerate(images):  # one that is nearly right
        own = references[image][0]
        captions[b][0] = [*own[:5], *captions[b][0]][:T]
    return references, images, captions


def encoded(references):
    flat = [[START, *caption] for own in references for caption in own]
    return EncodedCaptions(
        ids=np.concatenate(flat).astype(np.int32),
        caption_offsets=np.cumsum([0, *map(len, flat)]),
        image_offsets=np.cumsum([0, *map(len, references)]),
        num_truncated=0,
    )


def grams(words):
    found = [tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]
    return Counter(found)


def slow_cider(references, image, caption, *, among=None):
    """CIDEr-D by the paper's formulas, an n-gram at a time; beside the captions `among`, the image's if None."""
    among = references[image] if among is None else among
    documents = Counter(gram for own in references for gram in {g for c in own for g in grams(c)})

    def vector(words, n):
        found = {gram: times for gram, times in grams(words).items() if len(gram) == n}
        rarity = {gram: math.log(len(references) / max(1, documents[gram])) for gram in found}
        return {gram: times * rarity[gram] for gram, times in found.items()}

    total = 0.0
    for reference in among:
        gap = max(len(caption) - 1, 0) - max(len(reference) - 1, 0)
        for n in range(1, 5):
            a, b = vector(caption, n), vector(reference, n)
            norm = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
            product = sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys())
            total += 10 / 4 * math.exp(-(gap**2) / 72) * (product / norm if norm else 0.0)
    return total / len(among)
