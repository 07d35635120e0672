"""Benchmark of rewards: CIDEr-D of samples against pycocoevalcap's scorer, and its share of a training step."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from captioning.benchmarks.harness import NO_PYCOCOEVALCAP, interleave, median_ratio, timed
from captioning.captioner.captioner import Captioner
from captioning.generation import BeamConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.captions import EncodedCaptions
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
"""Number of images of the training split, as in Flickr8k."""

REGIONS, CHANNELS, VOCABULARY_SIZE, LENGTH = 49, 512, 9487, 20


class Samples(NamedTuple):
    """Sampled captions, and the references to reward them with."""

    references: list[list[list[int]]]  # of each image of the split; they end with <end>
    encoded: EncodedCaptions  # the same
    images: Ints  # (B,) indices of the batch's images
    ids: Ints  # (B, K, T)
    lengths: Ints  # (B, K)


def synthetic_samples(*, seed: int, split: int = SPLIT, images: int = IMAGES) -> Samples:
    """References of 8 to 15 words with Zipf's word frequencies; samples are references with 40 % of words replaced."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(3, VOCABULARY_SIZE + 3 - len(SPECIALS))
    share /= share.sum()
    words = np.arange(len(SPECIALS), VOCABULARY_SIZE)

    def caption() -> list[int]:
        return [*generator.choice(words, generator.integers(8, 16), p=share).tolist(), Vocabulary.end]

    references = [[caption() for _ in range(REFERENCES)] for _ in range(split)]
    flat = [[Vocabulary.start, *caption] for captions in references for caption in captions]
    encoded = EncodedCaptions(
        ids=np.concatenate(flat).astype(np.int32),
        caption_offsets=np.cumsum([0, *map(len, flat)]),
        image_offsets=np.arange(0, len(flat) + 1, REFERENCES),
        num_truncated=0,
    )
    chosen = generator.choice(split, images, replace=False)
    lengths = np.empty((images, SAMPLES), np.int64)
    ids = np.zeros((images, SAMPLES, 16), np.int64)
    for place in np.ndindex(lengths.shape):
        sample = np.array(references[chosen[place[0]]][generator.integers(REFERENCES)])
        replaced = generator.random(len(sample)) < 0.4
        replaced[-1] = False  # <end>
        sample[replaced] = generator.choice(words, replaced.sum(), p=share)
        lengths[place], ids[place][: len(sample)] = len(sample), sample
    return Samples(references, encoded, chosen, ids, lengths)


def benchmark_reward(*, repeats: int = 9, seed: int = 0) -> dict[str, Any]:
    """CIDEr-D of 5 samples of each of 50 images against 5 references, and a self-critical step with that reward.

    pycocoevalcap's scorer gets the ids as words and the split's document frequencies. Through its interface it
    counts an image's references once per sample; `ratio_references_counted` compares with the same scorer after
    all references were counted beforehand.

    Raises:
        UserError: pycocoevalcap is missing.
        RuntimeError: the contenders' scores differ by more than 1e-6.
    """
    samples = synthetic_samples(seed=seed)
    counting, references = timed(partial(_TimedReferences, samples.encoded, vocabulary_size=VOCABULARY_SIZE))
    theirs, theirs_counted = _pycocoevalcap_scorers(samples)

    def ours() -> Floats:
        return references.score(samples.images, samples.ids, samples.lengths).cider

    difference = float(np.abs(ours() - theirs()).max())
    if difference > 1e-6:
        raise RuntimeError(f"the contenders disagree by {difference:.2g}")
    contenders = {"ours": ours, "pycocoevalcap": theirs, "references_counted": theirs_counted}
    seconds = interleave(contenders, repeats=repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    step, share = _self_critical_step(samples, references, repeats=max(2, repeats // 3))
    return {
        "name": "reward",
        "ratio": median_ratio(seconds, "pycocoevalcap"),
        "ratio_references_counted": median_ratio(seconds, "references_counted"),
        "ours_per_s": samples.lengths.size / medians["ours"],
        "pycocoevalcap_per_s": samples.lengths.size / medians["pycocoevalcap"],
        "unit": "samples",
        "peak_share": None,
        "peak_share_why": "sorting and looking up n-grams has no matrix product whose rate could be a share of a peak",
        "seconds": medians["ours"],
        "pycocoevalcap_seconds": medians["pycocoevalcap"],
        "largest_difference": difference,
        "step_seconds": step,
        "step_share": share,
        "images": len(samples.images),
        "samples": samples.lengths.shape[1],
        "references": REFERENCES,
        "split": len(samples.references),
        "counting_seconds": counting,
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "repeats": repeats,
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as printed lines."""
    return [
        f"ours          {result['ours_per_s']:8.0f} samples/s   {1e3 * result['seconds']:.1f} ms for "
        f"{result['images']} images x {result['samples']} samples",
        f"pycocoevalcap {result['pycocoevalcap_per_s']:8.0f} samples/s   "
        f"{1e3 * result['pycocoevalcap_seconds']:.0f} ms",
        f"{result['ratio']:.1f} times as fast, {result['ratio_references_counted']:.1f} times with references counted "
        f"beforehand; scores equal to {result['largest_difference']:.1g}",
        f"a self-critical step of these images takes {result['step_seconds']:.2f} s, "
        f"{100 * result['step_share']:.2f} % of it for the reward; counting the references of "
        f"{result['split']:,} images once per run takes {result['counting_seconds']:.1f} s",
    ]


def _pycocoevalcap_scorers(samples: Samples) -> tuple[Callable[[], Floats], Callable[[], Floats]]:
    """CIDEr-D by pycocoevalcap's scorer: with references counted every time, and counted beforehand."""
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test
    except ImportError:
        raise NO_PYCOCOEVALCAP from None

    class SplitSizedList(list[Any]):
        """The scorer uses the logarithm of the list's length as that of the number of images of the split."""

        def __len__(self) -> int:
            return len(samples.references)

    def texts(captions: Any) -> list[str]:
        return [" ".join(map(str, caption)) for caption in captions]

    split = CiderScorer()
    for captions in samples.references:
        split.cook_append(None, texts(captions))
    split.compute_doc_freq()
    frequencies = defaultdict(float, split.document_frequency)
    references = [texts(samples.references[image]) for image in samples.images]
    counted = [cook_refs(captions) for captions in references]
    hypotheses = [
        texts(ids[:length] for ids, length in zip(*image, strict=True))
        for image in zip(samples.ids, samples.lengths, strict=True)
    ]

    def score(append: Callable[[Any, int, str], None]) -> Floats:
        scorer = CiderScorer()
        scorer.document_frequency, scorer.crefs = frequencies, SplitSizedList()
        for image, captions in enumerate(hypotheses):
            for caption in captions:
                append(scorer, image, caption)
        return np.array(scorer.compute_cider()).reshape(samples.lengths.shape)

    def append(scorer: Any, image: int, caption: str) -> None:
        scorer.cook_append(caption, references[image])

    def append_counted(scorer: Any, image: int, caption: str) -> None:
        scorer.crefs.append(counted[image])
        scorer.ctest.append(cook_test(caption))

    return partial(score, append), partial(score, append_counted)


class _TimedReferences(References):
    """Adds up the seconds spent scoring."""

    seconds = 0.0

    def score(self, images: Ints, words: Ints, lengths: Ints) -> Rewards:
        elapsed, rewards = timed(partial(super().score, images, words, lengths))
        self.seconds += elapsed
        return rewards


def _self_critical_step(
    samples: Samples, references: _TimedReferences, *, repeats: int
) -> tuple[float, float]:
    """Seconds of an update of a soft attention LSTM of size 512 (Adam; baseline `mean`), and the reward's share.

    Its weights are random, so that captions rarely end before their 20 words.
    """
    torch.manual_seed(0)
    words = (f"w{number}" for number in range(VOCABULARY_SIZE - len(SPECIALS)))
    captioner = Captioner.build(
        encoder=SmallCNNConfig(channels=(CHANNELS,), frequencies=0),
        preprocessing=Preprocessing(),
        decoder=SoftAttentionLSTMConfig(embedding=512, hidden=512, attention_size=512),
        search=BeamConfig(),
        vocabulary=Vocabulary(words=(*SPECIALS, *words)),
    )
    config = SelfCriticalConfig(samples=SAMPLES, baseline="mean", max_length=LENGTH)
    image_ids = list(range(len(samples.references)))
    objective = SelfCritical(captioner, config, references, ids=image_ids, seed=0)
    optimizer = torch.optim.Adam(captioner.decoder.parameters(), lr=1e-5, fused=True)
    regions = torch.randn(len(samples.images), REGIONS, CHANNELS)
    no_captions = torch.zeros(len(samples.images), 1, 2, dtype=torch.int64)
    batch = Batch(samples.images.tolist(), Features(regions), no_captions, (1,), 1)

    def update(number: int) -> None:
        optimizer.zero_grad()
        objective(batch, BatchStats(1, 1, len(batch.image_ids), number)).value.backward()
        optimizer.step()

    seconds, rewards = [], []
    for number in range(repeats + 1):
        before = references.seconds
        seconds.append(timed(partial(update, number))[0])
        rewards.append(references.seconds - before)
    shares = [
        reward / step for reward, step in zip(rewards[1:], seconds[1:], strict=True)
    ]  # the first warms up
    return statistics.median(seconds[1:]), statistics.median(shares)
