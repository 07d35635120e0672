"""What an update lowers: batch -> a loss that sums over an update's batches and processes. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.loaders.batches import EncodedCaptions
from captioning.records import ImageId
from captioning.tensors import Batch, SequenceOutput
from captioning.training.batch_stats import BatchStats, Loss
from captioning.training.compiled import compiled
from captioning.training.config import TrainingConfig
from captioning.training.loss_weights import Weights
from captioning.training.losses import (
    caption_logprobs,
    cross_entropy,
    divergence,
    doubly_stochastic,
    hard_attention,
)
from captioning.training.rewards import References
from captioning.training.scheduled_sampling import own_words
from captioning.training.self_critical import SelfCritical
from captioning.training.validation import to_device


class CrossEntropy(nn.Module):
    """Cross-entropy of the captions' words, a mean over the update's tokens, with label smoothing and penalties.

    Weights are 1 in the mean over the training split's tokens, so the sum is divided by the number of tokens, not
    by that of the weights: a batch of light captions then moves the model less, as it should.
    With R-Drop (Liang et al. 2021) the loss is half of the paper's, so that a rate means what it means without; the
    image is remembered once, and a caption's second reading is one more sequence of it.
    """

    word_weights: Tensor | None

    def __init__(
        self,
        captioner: Captioner,
        config: TrainingConfig,
        *,
        word_weights: Tensor | None = None,
        forward_of_decoder: Callable[..., SequenceOutput] | None = None,
    ):
        """
        Args:
            word_weights: (V,) float32, of a word wherever it is to be said; None: 1.
            forward_of_decoder: (words, memory) -> Steps in place of the decoder's own, which it must equal.
        """
        super().__init__()
        self.captioner, self.config, self.forward_of_decoder = captioner, config, forward_of_decoder
        self.register_buffer("word_weights", word_weights, persistent=False)

    def forward(self, batch: Batch, update: BatchStats) -> Loss:
        captioner, config = self.captioner, self.config
        decoder, pad = captioner.decoder, captioner.vocabulary.pad
        device = next(decoder.parameters()).device
        words = batch.ids.to(device, non_blocking=True)
        memory = decoder.encode_memory(captioner.features(to_device(batch.images, device)))
        read = self._read(words[..., :-1], memory, batch.batch_sizes, epoch=update.epoch)
        copies = 2 if config.r_drop else 1
        said, batch_sizes = words[..., 1:], batch.batch_sizes
        if copies > 1:  # the copies of a caption are neighbours, so the longest still come first
            said, read = (each.repeat_interleave(copies, 1) for each in (said, read))
            batch_sizes = tuple(copies * count for count in batch_sizes)
        steps = self._steps(read, memory, batch_sizes)
        targets = said.flatten()
        counts = (targets != pad).nonzero().squeeze(1)  # the positions that count
        hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
        logits = decoder.logits(hidden).float()
        weights = self._weights(batch, said, counts, copies=copies)
        entropy = cross_entropy(logits, targets[counts], smoothing=config.label_smoothing, weights=weights)
        value = entropy / copies / update.tokens
        sums = {"loss": entropy.detach() / copies}
        if config.r_drop:
            second = (counts // said.shape[2] % 2).bool()
            apart = divergence(logits[~second], logits[second])
            value = value + config.r_drop / copies / update.tokens * apart
            sums["divergence"] = apart.detach()
        if steps.sampled_regions is not None and steps.attention is not None:
            valid = said != pad
            logprob = caption_logprobs(logits, targets[counts], valid)
            learned = hard_attention(steps.attention, steps.sampled_regions, logprob, valid)
            value = value + learned / copies / update.tokens
        if config.doubly_stochastic:
            if steps.attention is None:
                raise UserError(
                    "training.doubly_stochastic needs a decoder that shows its attention while training"
                )
            penalty = doubly_stochastic(steps.attention, said != pad)
            value = value + config.doubly_stochastic / copies / update.captions * penalty
        return Loss(value, sums, batch.tokens)

    def _read(self, words: Tensor, memory: Any, batch_sizes: tuple[int, ...], *, epoch: int) -> Tensor:
        """What is read for `words` (B, K, T)."""
        scheduled = self.config.scheduled_sampling
        probability = scheduled.probability(epoch) if scheduled else 0.0
        if not scheduled or not probability:
            return words
        return own_words(
            self.captioner.decoder,
            memory,
            words,
            batch_sizes,
            vocabulary=self.captioner.vocabulary,
            probability=probability,
            passes=scheduled.passes,
        )

    def _steps(self, read: Tensor, memory: Any, batch_sizes: tuple[int, ...]) -> SequenceOutput:
        decoder, share = self.captioner.decoder, self.config.embedding_dropout
        if self.forward_of_decoder:
            return self.forward_of_decoder(read, memory)
        if not share:
            return decoder(read, memory, batch_sizes)
        table = decoder.embedding.weight
        kept = F.dropout(table.new_ones(len(table), 1), share)
        # a matrix that is also the last product (`tied`) stays as it is there
        return functional_call(
            decoder, {"embedding.weight": table * kept}, (read, memory, batch_sizes), tie_weights=False
        )

    def _weights(self, batch: Batch, said: Tensor, counts: Tensor, *, copies: int) -> Tensor | None:
        """(M,), of the positions that count."""
        found = None
        if self.word_weights is not None:
            found = self.word_weights[said.flatten()[counts]]
        if batch.weights is not None:
            captions = batch.weights.to(said.device, non_blocking=True).repeat_interleave(copies, 1).flatten()
            own = captions[counts // said.shape[2]]
            found = own if found is None else found * own
        return found


def objective(
    captioner: Captioner,
    config: TrainingConfig,
    *,
    ids: Sequence[ImageId],
    captions: EncodedCaptions,
    weights: Weights,
    seed: int,
    log: Callable[[str], None],
) -> nn.Module:
    """What `config` asks for: a module (batch, size of the update) -> Loss.

    Args:
        ids, captions: of the training split's images, in the same order: what samples are rewarded by.
        weights: of the same captions and their words.
        seed: of the run: what is sampled depends on it, the update and the image.
        say: is told where there is nothing to compile with.

    Raises:
        UserError: the decoder cannot be compiled.
    """
    if config.self_critical is None:
        words = None if weights.words is None else torch.from_numpy(weights.words)
        device = next(captioner.decoder.parameters()).device
        forward = None
        if config.compile:
            if not captioner.decoder.parallel:
                raise UserError(
                    "training.compile: this decoder reads word by word, and every length of caption would be "
                    "compiled anew; set it to false, or take a decoder of kind transformer or meshed_memory"
                )
            forward = compiled(captioner.decoder.forward, device, log=log)
        return CrossEntropy(captioner, config, word_weights=words, forward_of_decoder=forward).to(device)
    references = References(captions, vocabulary_size=len(captioner.vocabulary))
    return SelfCritical(captioner, config.self_critical, references, ids=ids, seed=seed)


def autocast_context(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The context in which the forward pass runs."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    enabled = config.precision != "fp32" and device.type != "cpu"
    return torch.autocast(device.type, dtype=kind if enabled else torch.bfloat16, enabled=enabled)
