"""Self-critical training (Rennie et al. 2017): captions drawn from the model, weighted by reward. No optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import image_keys
from captioning.generation import GreedyConfig, SampleConfig, SearchConfig, search
from captioning.metrics.caption_statistics import BAD_ENDINGS
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.records import ImageId
from captioning.tensors import Batch, Hypotheses
from captioning.text.vocabulary import Vocabulary
from captioning.training.batch_stats import BatchStats, Loss
from captioning.training.config import SelfCriticalConfig
from captioning.training.rewards import References
from captioning.training.validation import to_device


class SelfCritical(nn.Module):
    """Minus the mean over the update's samples of (reward - baseline) x log-probability.

    Its gradient is in expectation that of minus the expected reward (REINFORCE, Williams 1992), for a sample
    takes no part in its own baseline. The captioner is put and left in eval mode: with dropout, captions would
    be drawn from one distribution and the log-probabilities of another one trained.
    """

    def __init__(
        self,
        captioner: Captioner,
        config: SelfCriticalConfig,
        references: References,
        *,
        ids: Sequence[ImageId],
        seed: int,
    ):
        """`ids` are those of the images in `references`. What is drawn depends on `seed`, update and image."""
        super().__init__()
        self.captioner, self.config, self.references, self.seed = captioner, config, references, seed
        self.numbers = {image_id: number for number, image_id in enumerate(ids)}
        self.greedy = GreedyConfig(max_length=config.max_length)
        self.sample = SampleConfig(
            samples=config.samples, temperature=config.temperature, max_length=config.max_length
        )
        known = captioner.vocabulary.ids
        self.endings = [known[word] for word in BAD_ENDINGS if word in known]

    def forward(self, batch: Batch, update: BatchStats) -> Loss:
        """The sums are over samples; a length counts words and no `<end>`."""
        captioner, config = self.captioner.eval(), self.config
        decoder, vocabulary = captioner.decoder, captioner.vocabulary
        device = next(decoder.parameters()).device
        memory = decoder.encode_memory(captioner.features(to_device(batch.images, device)))
        ids = batch.image_ids or [next(iter(self.numbers))]  # a share of nothing is one image, weighted by 0
        drawing = replace(self.sample, seed=_seed(self.seed, update.step))
        drawn = found(decoder, memory, drawing, vocabulary, ids)
        reward = self._reward(drawn, ids)
        if config.baseline == "greedy":
            baseline = self._reward(found(decoder, memory, self.greedy, vocabulary, ids), ids)
        else:
            baseline = (reward.sum(1, keepdim=True) - reward) / (config.samples - 1)
        logprob = caption_logprobs(decoder, memory, drawn, vocabulary, temperature=config.temperature)
        counts = float(bool(batch.image_ids))
        loss = -counts * ((reward - baseline).to(logprob) * logprob).sum()
        lengths = drawn.lengths - drawn.finished.long()
        last = drawn.ids.gather(2, (lengths - 1)[..., None])[..., 0]
        sums = {
            "loss": loss.detach(),
            "reward": counts * reward.sum(),
            "baseline": counts * baseline.expand_as(reward).sum(),
            "length": counts * lengths.sum(),
            "bad_ending": counts * torch.isin(last, last.new_tensor(self.endings)).sum(),
        }
        return Loss(loss / (update.images * config.samples), sums, counts * reward.numel())

    def _reward(self, captions: Hypotheses, ids: Sequence[ImageId]) -> Tensor:
        """(B, K) float64, on the CPU."""
        images = np.array([self.numbers[image_id] for image_id in ids])
        words, lengths = captions.ids.cpu().numpy(), captions.lengths.cpu().numpy()
        rewards = self.references.score(images, words, lengths)
        return torch.from_numpy(self.config.cider * rewards.cider + self.config.bleu * rewards.bleu)


@torch.no_grad()
def found(
    decoder: Decoder, memory: Any, config: SearchConfig, vocabulary: Vocabulary, ids: Sequence[ImageId]
) -> Hypotheses:
    """What a search finds, each image's longest caption first, as `Decoder.forward` wants to read them."""
    device = next(decoder.parameters()).device
    result = search(
        decoder,
        memory,
        config,
        special=vocabulary.special_tokens,
        keys=image_keys(ids, device),
    )
    return reorder_state(result, result.lengths.argsort(dim=1, descending=True, stable=True))


def caption_logprobs(
    decoder: Decoder, memory: Any, drawn: Hypotheses, vocabulary: Vocabulary, *, temperature: float
) -> Tensor:
    """Log-probability (B, K) of the captions under the distribution that they were drawn from, with gradient.

    In one teacher-forced pass. Words count through the first `<end>`; words that a search never produces (and
    `<end>` as first word) have no share of the probability.

    Args:
        drawn: longest first in each image.
    """
    words, lengths = drawn.ids, drawn.lengths
    length = words.shape[2]
    valid = torch.arange(length, device=words.device) < lengths[..., None]  # (B, K, T)
    read = F.pad(words[..., :-1], (1, 0), value=vocabulary.start)
    steps = decoder(read, memory, tuple(valid.sum(1).amax(0).tolist()))
    counts = valid.flatten().nonzero().squeeze(1)  # the positions that count
    logits = decoder.logits(steps.hidden.flatten(0, 2).index_select(0, counts))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    never = torch.tensor(vocabulary.special_tokens.suppress_ids, device=words.device)
    logits.index_fill_(1, never, float("-inf"))
    logits[:, vocabulary.end].masked_fill_(counts % length == 0, float("-inf"))
    logprob = -F.cross_entropy(logits, words.flatten()[counts], reduction="none")
    total = logprob.new_zeros(lengths.numel()).index_add(0, counts // length, logprob)
    return total.view(lengths.shape)


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
