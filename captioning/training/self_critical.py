"""Self-critical training (Rennie et al. 2017): sampled captions, weighted by their reward above a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import image_keys
from captioning.generation import GreedyConfig, SampleConfig, SearchConfig, search
from captioning.generation.prefill import Prefill
from captioning.generation.scores import trim
from captioning.metrics.caption_statistics import BAD_ENDINGS
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.ops import noise
from captioning.records import ImageId
from captioning.tensors import Batch, Hypotheses
from captioning.text.vocabulary import Vocabulary
from captioning.training.batch_stats import BatchStats, Loss, Objective
from captioning.training.config import SelfCriticalConfig
from captioning.training.losses import region_logprobs
from captioning.training.no_grad import no_grad
from captioning.training.rewards import References
from captioning.training.validation import to_device
from captioning.training.word_captions import WordCaptions


class SelfCritical(Objective):
    """Minus the mean over the update's samples of (reward - baseline) x log-probability.

    The log-probability of a caption is the sum over its words. Differs: common implementations divide by the number
    of words, of the caption or of the batch, so a learning rate from there is too large here by about that number.
    Its gradient is an unbiased estimate of that of minus the expected reward (REINFORCE, Williams 1992), since a
    sample takes no part in its own baseline. The captioner is put into eval mode and stays there: with dropout, the
    samples would come from another distribution than the trained one. A decoder with random variables of its own
    (hard attention's regions) samples them as well, and the log-probability of a sample includes theirs.
    """

    def __init__(
        self,
        captioner: Captioner,
        config: SelfCriticalConfig,
        references: References,
        *,
        ids: Sequence[ImageId],
        seed: int,
        words: WordCaptions | None = None,
    ):
        """
        Args:
            ids: of the images in `references`.
            seed: samples depend on it, the update and the image.
            words: if the decoder's tokens are pieces of words; `references` are of its words.
        """
        super().__init__()
        self.captioner, self.config, self.references, self.seed = captioner, config, references, seed
        self.image_numbers = {image_id: number for number, image_id in enumerate(ids)}
        self.greedy = GreedyConfig(max_length=config.max_length)
        self.sample = UnrankedSampleConfig(
            samples=config.samples, temperature=config.temperature, max_length=config.max_length
        )
        self.words = words
        vocabulary_ids = captioner.vocabulary.ids
        self.bad_endings = [vocabulary_ids[word] for word in BAD_ENDINGS if word in vocabulary_ids]
        if words:
            self.bad_endings = words.ids_of(BAD_ENDINGS)

    def forward(self, batch: Batch, update: BatchStats) -> Loss:
        """The sums are over samples; lengths count words without `<end>`."""
        captioner, config = self.captioner.eval(), self.config
        decoder, vocabulary = captioner.decoder, captioner.vocabulary
        device = next(decoder.parameters()).device
        memory = decoder.encode_memory(captioner.features(to_device(batch.images, device)))
        ids = batch.image_ids or [next(iter(self.image_numbers))]  # an empty share has one image of weight 0
        sampling = replace(self.sample, seed=_sampling_seed(self.seed, update.step))
        states = noise.sequence_states(
            _sampling_seed(self.seed, update.step, 1), image_keys(ids, device), config.samples
        )
        samples = run_search(decoder, decoder.with_noise(memory, states), sampling, vocabulary, ids)
        samples, states = longest_first(samples, states)
        words, word_counts = self._words(samples)
        reward = self._reward(words, word_counts, ids)
        if config.baseline == "greedy":
            greedy = run_search(decoder, memory, self.greedy, vocabulary, ids)
            baseline = self._reward(*self._words(greedy), ids)
        else:
            baseline = (reward.sum(1, keepdim=True) - reward) / (config.samples - 1)
        memory = decoder.with_noise(memory, states)
        logprob = caption_logprobs(decoder, memory, samples, vocabulary, temperature=config.temperature)
        weight = float(bool(batch.image_ids))
        loss = -weight * ((reward - baseline).to(logprob) * logprob).sum()
        lengths = word_counts - samples.finished.to(word_counts)
        last_ids = words.gather(2, (lengths - 1).clamp(min=0)[..., None])[..., 0]
        sums = {
            "loss": loss.detach(),
            "reward": weight * reward.sum(),
            "baseline": weight * baseline.expand_as(reward).sum(),
            "length": weight * lengths.sum(),
            "bad_ending": weight * torch.isin(last_ids, last_ids.new_tensor(self.bad_endings)).sum(),
        }
        return Loss(loss / (update.images * config.samples), sums, weight * reward.numel())

    def _words(self, captions: Hypotheses) -> tuple[Tensor, Tensor]:
        """Ids (B, K, T) of the captions' words and `<end>`, and their numbers (B, K)."""
        if self.words is None:
            return captions.ids, captions.lengths
        return self.words.of(captions.ids, captions.lengths)

    def _reward(self, words: Tensor, lengths: Tensor, ids: Sequence[ImageId]) -> Tensor:
        """(B, K) float64, on the CPU."""
        images = np.array([self.image_numbers[image_id] for image_id in ids])
        rewards = self.references.score(images, words.cpu().numpy(), lengths.cpu().numpy())
        return torch.from_numpy(self.config.cider * rewards.cider + self.config.bleu * rewards.bleu)


@dataclass(frozen=True, kw_only=True)
class UnrankedSampleConfig(SampleConfig):
    """Samples in the order of their sequences, so that each can be found with its noise."""

    def run(self, prefill: Prefill) -> Hypotheses:
        return trim(self.draw(prefill))


@no_grad()
def run_search(
    decoder: Decoder, memory: Any, config: SearchConfig, vocabulary: Vocabulary, ids: Sequence[ImageId]
) -> Hypotheses:
    """The result of a search for the images `ids`."""
    keys = image_keys(ids, next(decoder.parameters()).device)
    return search(decoder, memory, config, special=vocabulary.special_tokens, keys=keys)


def longest_first(captions: Hypotheses, states: Tensor) -> tuple[Hypotheses, Tensor]:
    """Each image's longest caption first, the order that `Decoder.forward` needs, and its `states` (B, K)."""
    order = captions.lengths.argsort(dim=1, descending=True, stable=True)
    return reorder_state(captions, order), reorder_state(states, order)


def caption_logprobs(
    decoder: Decoder, memory: Any, samples: Hypotheses, vocabulary: Vocabulary, *, temperature: float
) -> Tensor:
    """Log-probability (B, K) of captions under the distribution they were sampled from, with gradient.

    Computed in one teacher-forced pass. Words count up to the first `<end>`; ids that a search suppresses (and
    `<end>` as first word) have probability 0. Sampled regions are part of a caption: their log-probability is added.

    Args:
        memory: with the noise, in the order of the samples, with which they were sampled.
        samples: each image's longest caption first.
    """
    ids, lengths = samples.ids, samples.lengths
    length = ids.shape[2]
    valid = torch.arange(length, device=ids.device) < lengths[..., None]  # (B, K, T)
    inputs = F.pad(ids[..., :-1], (1, 0), value=vocabulary.start)
    output = decoder(inputs, memory, tuple(valid.sum(1).amax(0).tolist()))
    positions = valid.flatten().nonzero().squeeze(1)
    logits = decoder.logits(output.hidden.flatten(0, 2).index_select(0, positions))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    suppressed = torch.tensor(vocabulary.special_tokens.suppress_ids, device=ids.device)
    logits.index_fill_(1, suppressed, float("-inf"))
    logits[:, vocabulary.end].masked_fill_(positions % length == 0, float("-inf"))
    logprob = -F.cross_entropy(logits, ids.flatten()[positions], reduction="none")
    total = logprob.new_zeros(lengths.numel()).index_add(0, positions // length, logprob).view(lengths.shape)
    if output.sampled_regions is not None:
        total = total + region_logprobs(output.attention, output.sampled_regions.regions, valid)
    return total


def _sampling_seed(seed: int, step: int, *number: int) -> int:
    return int(np.random.SeedSequence((seed, step, *number)).generate_state(1, np.uint64)[0] >> 1)
