"""How fast samples are rewarded, beside pycocoevalcap in the same run, and what share of a training step that is."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from captioning.benchmarks.training_and_decoding import rounds
from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.generation import BeamConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.batches import EncodedCaptions
from captioning.metrics.ngrams import Floats, Ints
from captioning.models.decoders import SoftAttentionLSTMConfig
from captioning.models.encoders import SmallCNNConfig
from captioning.tensors import Batch, Features
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.batch_stats import BatchStats
from captioning.training.config import SelfCriticalConfig
from captioning.training.rewards import References, Rewards
from captioning.training.self_critical import SelfCritical

IMAGES, SAMPLES, REFERENCES = 50, 5, 5
SPLIT = 6000
"""Images of the training split, as Flickr8k has them."""

REGIONS, CHANNELS, WORDS, LENGTH = 49, 512, 9487, 20

_WHY_NO_PEAK = "sorting and looking up n-grams has no matrix product whose rate could be a share of a peak"


class Samples(NamedTuple):
    """Captions to be rewarded, and what with."""

    captions: list[list[list[int]]]  # references of each image of the split, <end> among them
    encoded: EncodedCaptions
    images: Ints  # (B,) of the batch
    words: Ints  # (B, K, T)
    lengths: Ints  # (B, K)


def made_up(*, seed: int, split: int = SPLIT, images: int = IMAGES) -> Samples:
    """References of 8 to 15 words in the frequencies that words have (Zipf); samples of them with words replaced."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(3, WORDS + 3 - len(SPECIALS))
    share /= share.sum()
    ids = np.arange(len(SPECIALS), WORDS)

    def caption() -> list[int]:
        return [*generator.choice(ids, generator.integers(8, 16), p=share).tolist(), Vocabulary.end]

    captions = [[caption() for _ in range(REFERENCES)] for _ in range(split)]
    flat = [[Vocabulary.start, *each] for own in captions for each in own]
    encoded = EncodedCaptions(
        words=np.concatenate(flat).astype(np.int32),
        start=np.cumsum([0, *map(len, flat)]),
        first=np.arange(0, len(flat) + 1, REFERENCES),
        cut=0,
    )
    chosen = generator.choice(split, images, replace=False)
    lengths = np.empty((images, SAMPLES), np.int64)
    words = np.zeros((images, SAMPLES, 16), np.int64)
    for place in np.ndindex(lengths.shape):
        own = np.array(captions[chosen[place[0]]][generator.integers(REFERENCES)])
        replaced = generator.random(len(own)) < 0.4
        replaced[-1] = False  # <end>
        own[replaced] = generator.choice(ids, replaced.sum(), p=share)
        lengths[place], words[place][: len(own)] = len(own), own
    return Samples(captions, encoded, chosen, words, lengths)


def benchmark_reward(*, repeats: int = 9, seed: int = 0) -> dict[str, Any]:
    """CIDEr-D of 5 samples of each of 50 images against 5 references, and a self-critical step with that reward.

    pycocoevalcap's scorer gets the ids as words and the split's document frequencies. It counts the references
    of an image once for every sample, as its interface has it; `ratio_references_counted` is beside the same
    scorer with all references counted beforehand.

    Raises:
        UserError: pycocoevalcap is missing.
        RuntimeError: the two disagree by more than 1e-6.
    """
    samples = made_up(seed=seed)
    began = time.perf_counter()
    references = _Watched(samples.encoded, vocabulary_size=WORDS)
    counting = time.perf_counter() - began
    whole, counted = _theirs(samples)

    def ours() -> Floats:
        return references.score(samples.images, samples.words, samples.lengths).cider

    difference = float(np.abs(ours() - whole()).max())
    if difference > 1e-6:  # a benchmark of two different things would be worth nothing
        raise RuntimeError(f"the two disagree by {difference:.2g}")
    seconds = rounds({"ours": ours, "pycocoevalcap": whole, "counted": counted}, repeats=repeats)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        for name in ("pycocoevalcap", "counted")
    }
    step, share = _step(samples, references, repeats=max(2, repeats // 3))
    return {
        "name": "reward",
        "ratio": ratios["pycocoevalcap"],
        "ratio_references_counted": ratios["counted"],
        "ours_per_s": samples.lengths.size / middle["ours"],
        "pycocoevalcap_per_s": samples.lengths.size / middle["pycocoevalcap"],
        "unit": "samples",
        "peak_share": None,
        "peak_share_why": _WHY_NO_PEAK,
        "seconds": middle["ours"],
        "pycocoevalcap_seconds": middle["pycocoevalcap"],
        "largest_difference": difference,
        "step_seconds": step,
        "step_share": share,
        "images": len(samples.images),
        "samples": samples.lengths.shape[1],
        "references": REFERENCES,
        "split": len(samples.captions),
        "counting_seconds": counting,
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "repeats": repeats,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result in a few lines for a person."""
    return [
        f"ours          {result['ours_per_s']:8.0f} samples/s   {1e3 * result['seconds']:.1f} ms for "
        f"{result['images']} images x {result['samples']} samples",
        f"pycocoevalcap {result['pycocoevalcap_per_s']:8.0f} samples/s   "
        f"{1e3 * result['pycocoevalcap_seconds']:.0f} ms",
        f"{result['ratio']:.1f} times as fast, {result['ratio_references_counted']:.1f} beside references counted "
        f"beforehand; the same to {result['largest_difference']:.1g}",
        f"a self-critical step of these images takes {result['step_seconds']:.2f} s, "
        f"{100 * result['step_share']:.2f} % of it the reward; counting the references of "
        f"{result['split']:,} images once a run {result['counting_seconds']:.1f} s",
    ]


def _theirs(samples: Samples) -> tuple[Callable[[], Floats], Callable[[], Floats]]:
    """CIDEr-D by pycocoevalcap's scorer: references counted each time, and beforehand."""
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test
    except ImportError:
        raise UserError(
            'pycocoevalcap is not installed; install it with pip install "captioning[java]"'
        ) from None

    class AsMany(list[Any]):
        """The scorer takes the logarithm of how many images it was given: those of the split."""

        def __len__(self) -> int:
            return len(samples.captions)

    def texts(captions: Any) -> list[str]:
        return [" ".join(map(str, caption)) for caption in captions]

    split = CiderScorer()
    for own in samples.captions:
        split.cook_append(None, texts(own))
    split.compute_doc_freq()
    frequencies = defaultdict(float, split.document_frequency)
    references = [texts(samples.captions[image]) for image in samples.images]
    hypotheses = [
        texts(words[:length] for words, length in zip(*each, strict=True))
        for each in zip(samples.words, samples.lengths, strict=True)
    ]
    cooked = [cook_refs(each) for each in references]

    def scored(append: Callable[[Any, int, str], None]) -> Floats:
        scorer = CiderScorer()
        scorer.document_frequency, scorer.crefs = frequencies, AsMany()
        for image, captions in enumerate(hypotheses):
            for caption in captions:
                append(scorer, image, caption)
        return np.array(scorer.compute_cider()).reshape(samples.lengths.shape)

    def each_time(scorer: Any, image: int, caption: str) -> None:
        scorer.cook_append(caption, references[image])

    def beforehand(scorer: Any, image: int, caption: str) -> None:
        scorer.crefs.append(cooked[image])
        scorer.ctest.append(cook_test(caption))

    return lambda: scored(each_time), lambda: scored(beforehand)


class _Watched(References):
    """Knows how long it has worked."""

    seconds = 0.0

    def score(self, images: Ints, words: Ints, lengths: Ints) -> Rewards:
        began = time.perf_counter()
        found = super().score(images, words, lengths)
        self.seconds += time.perf_counter() - began
        return found


def _step(samples: Samples, references: _Watched, *, repeats: int) -> tuple[float, float]:
    """Seconds of an update of the soft attention LSTM of 512 (Adam; baseline `mean`), and the reward's share of them.

    Its weights are random, so that captions seldom end: they have 20 words.
    """
    torch.manual_seed(0)
    captioner = Captioner.build(
        encoder=SmallCNNConfig(channels=(CHANNELS,), frequencies=0),
        preprocessing=Preprocessing(),
        decoder=SoftAttentionLSTMConfig(embedding=512, hidden=512, attention_size=512),
        search=BeamConfig(),
        vocabulary=Vocabulary(words=(*SPECIALS, *(f"w{i}" for i in range(WORDS - len(SPECIALS))))),
    )
    ids = list(range(len(samples.captions)))
    config = SelfCriticalConfig(samples=SAMPLES, baseline="mean", max_length=LENGTH)
    goal = SelfCritical(captioner, config, references, ids=ids, seed=0)
    optimizer = torch.optim.Adam(captioner.decoder.parameters(), lr=1e-5, fused=True)
    regions = torch.randn(len(samples.images), REGIONS, CHANNELS)
    nothing = torch.zeros(len(samples.images), 1, 2, dtype=torch.int64)
    batch = Batch(samples.images.tolist(), Features(regions), nothing, (1,), 1)
    taken, rewarded = [], []
    for number in range(repeats + 1):
        began, before = time.perf_counter(), references.seconds
        optimizer.zero_grad()
        goal(batch, BatchStats(1, 1, len(batch.image_ids), number)).value.backward()
        optimizer.step()
        taken.append(time.perf_counter() - began)
        rewarded.append(references.seconds - before)
    shares = [part / step for part, step in zip(rewarded[1:], taken[1:], strict=True)]  # the first warms up
    return statistics.median(taken[1:]), statistics.median(shares)
