"""What an update lowers: batch -> a loss that sums over an update's batches and processes. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from captioning.batches import EncodedCaptions
from captioning.captioner import Captioner
from captioning.errors import UserError
from captioning.losses import caption_logp, cross_entropy, doubly_stochastic, hard_attention
from captioning.records import ImageId
from captioning.tensors import Batch
from captioning.training.config import TrainingConfig
from captioning.training.own_words import own_words
from captioning.training.rewards import References
from captioning.training.self_critical import SelfCritical
from captioning.training.update import Loss, Size
from captioning.training.validation import to_device


class CrossEntropy(nn.Module):
    """Cross-entropy of the captions' words, a mean over the update's tokens, with label smoothing and penalty."""

    def __init__(self, captioner: Captioner, config: TrainingConfig):
        super().__init__()
        self.captioner, self.config = captioner, config

    def forward(self, batch: Batch, update: Size) -> Loss:
        captioner, config = self.captioner, self.config
        decoder, pad = captioner.decoder, captioner.vocabulary.pad
        device = next(decoder.parameters()).device
        words = batch.words.to(device, non_blocking=True)
        memory = decoder.remember(captioner.features(to_device(batch.images, device)))
        read = words[..., :-1]
        if config.scheduled_sampling and (share := config.scheduled_sampling.probability(update.epoch)):
            read = own_words(
                decoder,
                memory,
                read,
                batch.running,
                vocabulary=captioner.vocabulary,
                probability=share,
                passes=config.scheduled_sampling.passes,
            )
        steps = decoder(read, memory, batch.running)
        targets = words[..., 1:].flatten()
        counts = (targets != pad).nonzero().squeeze(1)  # the positions that count
        hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
        logits = decoder.logits(hidden).float()
        entropy = cross_entropy(logits, targets[counts], smoothing=config.label_smoothing)
        value = entropy / update.tokens
        if steps.looked is not None and steps.attention is not None:
            valid = words[..., 1:] != pad
            logp = caption_logp(logits, targets[counts], valid)
            value = value + hard_attention(steps.attention, steps.looked, logp, valid) / update.tokens
        if config.doubly_stochastic:
            if steps.attention is None:
                raise UserError(
                    "training.doubly_stochastic needs a decoder that shows its attention while training"
                )
            penalty = doubly_stochastic(steps.attention, words[..., 1:] != pad)
            value = value + config.doubly_stochastic / update.captions * penalty
        return Loss(value, {"loss": entropy.detach()}, batch.tokens)


def objective(
    captioner: Captioner,
    config: TrainingConfig,
    *,
    ids: Sequence[ImageId],
    captions: EncodedCaptions,
    seed: int,
) -> nn.Module:
    """What `config` asks for: a module (batch, size of the update) -> Loss.

    Args:
        ids, captions: of the training split's images, in the same order: what samples are rewarded by.
        seed: of the run: what is sampled depends on it, the update and the image.
    """
    if config.self_critical is None:
        return CrossEntropy(captioner, config)
    references = References(captions, vocabulary_size=len(captioner.vocabulary))
    return SelfCritical(captioner, config.self_critical, references, ids=ids, seed=seed)


def precise(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The context in which the forward pass runs."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    enabled = config.precision != "fp32" and device.type != "cpu"
    return torch.autocast(device.type, dtype=kind if enabled else torch.bfloat16, enabled=enabled)
