"""Training objectives: cross-entropy with its options, or self-critical training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.loaders.captions import EncodedCaptions
from captioning.records import ImageId
from captioning.tensors import Batch, SequenceOutput
from captioning.training.batch_stats import BatchStats, Loss, Objective
from captioning.training.config import TrainingConfig
from captioning.training.loss_weights import Weights
from captioning.training.losses import (
    TargetLogits,
    caption_logprobs,
    cross_entropy,
    divergence,
    doubly_stochastic,
    hard_attention,
    move_baseline,
    sampled_logprob,
    target_logits,
)
from captioning.training.rewards import References
from captioning.training.scheduled_sampling import mix_in_predictions
from captioning.training.self_critical import SelfCritical
from captioning.training.validation import to_device
from captioning.training.word_captions import WordCaptions


class CrossEntropy(Objective):
    """Mean cross-entropy per token of the update, with label smoothing and penalties.

    Weights average 1 over the training split's tokens, so the sum is divided by the number of tokens, not by the sum
    of the batch's weights: a batch of captions with small weights moves the model less.
    With R-Drop (Liang et al. 2021) the loss is half of the paper's, so that a learning rate means the same with and
    without it. The image is encoded once; the second pass of a caption is one more sequence of the image. Differs:
    the paper has no weights; those of captions and words apply to the cross-entropy alone, not to the divergence.
    """

    token_weights: Tensor | None

    def __init__(
        self,
        captioner: Captioner,
        config: TrainingConfig,
        *,
        token_weights: Tensor | None = None,
        compiled_forward: Callable[..., SequenceOutput] | None = None,
    ):
        """
        Args:
            token_weights: (V,) float32, weight of each word of the vocabulary as a target; None: 1.
            compiled_forward: (ids, memory) -> SequenceOutput, used in place of the decoder's `forward`.
        """
        super().__init__()
        self.captioner, self.config, self.compiled_forward = captioner, config, compiled_forward
        self.register_buffer("token_weights", token_weights, persistent=False)

    def forward(self, batch: Batch, update: BatchStats) -> Loss:
        """This batch's share of the loss of the update with the sizes `update`."""
        captioner, config = self.captioner, self.config
        decoder, pad = captioner.decoder, captioner.vocabulary.pad
        device = next(decoder.parameters()).device
        ids = batch.ids.to(device, non_blocking=True)
        features = captioner.features(to_device(batch.images, device))
        memory = decoder.encode_memory(features)
        inputs = self._scheduled_inputs(ids[..., :-1], memory, batch.batch_sizes, epoch=update.epoch)
        targets, batch_sizes = ids[..., 1:], batch.batch_sizes
        passes = 2 if config.r_drop else 1
        if passes > 1:  # the two passes of a caption are neighbours, so the longest captions still come first
            targets, inputs = targets.repeat_interleave(passes, 1), inputs.repeat_interleave(passes, 1)
            batch_sizes = tuple(passes * size for size in batch_sizes)
        output = self._decode(inputs, memory, batch_sizes)
        scored = target_logits(decoder, output.hidden, targets, pad=pad)
        scored = scored._replace(logits=scored.logits.float())
        weights = self._weights(scored, batch, targets, passes=passes)
        entropy = cross_entropy(
            scored.logits,
            scored.targets,
            smoothing=config.label_smoothing,
            suppress_ids=captioner.vocabulary.special_tokens.suppress_ids,
            weights=weights,
        )
        value = entropy / passes / update.tokens
        sums = {"loss": entropy.detach() / passes}
        if config.r_drop:
            second = (scored.positions // targets.shape[2] % 2).bool()
            kl = divergence(scored.logits[~second], scored.logits[second])
            value = value + config.r_drop / passes / update.tokens * kl
            sums["divergence"] = kl.detach()
        if output.sampled_regions is not None and output.attention is not None:
            valid = targets != pad
            logprob = caption_logprobs(scored.logits, scored.targets, valid)
            reinforce = hard_attention(output.attention, output.sampled_regions, logprob, valid)
            value = value + reinforce / passes / update.tokens
            sums |= sampled_logprob(output.sampled_regions, logprob, valid)
        if config.doubly_stochastic:
            if output.attention is None:
                raise UserError(
                    "training.doubly_stochastic needs a decoder that returns attention in training"
                )
            penalty = doubly_stochastic(output.attention, targets != pad, features.mask)
            value = value + config.doubly_stochastic / passes / update.captions * penalty
        return Loss(value, sums, batch.tokens)

    def end_update(self, totals: dict[str, float]) -> None:
        if "sampled_captions" in totals:
            move_baseline(cast(Tensor, self.captioner.decoder.baseline), totals)

    def _scheduled_inputs(
        self, ids: Tensor, memory: Any, batch_sizes: tuple[int, ...], *, epoch: int
    ) -> Tensor:
        """The input ids (B, K, T): those of the captions, some replaced under scheduled sampling."""
        scheduled = self.config.scheduled_sampling
        probability = scheduled.probability(epoch) if scheduled else 0.0
        if not scheduled or not probability:
            return ids
        return mix_in_predictions(
            self.captioner.decoder,
            memory,
            ids,
            batch_sizes,
            vocabulary=self.captioner.vocabulary,
            probability=probability,
            passes=scheduled.passes,
        )

    def _decode(self, inputs: Tensor, memory: Any, batch_sizes: tuple[int, ...]) -> SequenceOutput:
        decoder, dropout = self.captioner.decoder, self.config.embedding_dropout
        if self.compiled_forward:
            return self.compiled_forward(inputs, memory)
        if not dropout:
            return decoder(inputs, memory, batch_sizes)
        table = decoder.embedding.weight
        mask = F.dropout(table.new_ones(len(table), 1), dropout)
        # with `tied`, the output projection keeps the full table
        return functional_call(
            decoder, {"embedding.weight": table * mask}, (inputs, memory, batch_sizes), tie_weights=False
        )

    def _weights(self, scored: TargetLogits, batch: Batch, targets: Tensor, *, passes: int) -> Tensor | None:
        """Weight (M,) of each target: that of its word times that of its caption."""
        weights = None if self.token_weights is None else self.token_weights[scored.targets]
        if batch.weights is None:
            return weights
        of_captions = (
            batch.weights.to(targets.device, non_blocking=True).repeat_interleave(passes, 1).flatten()
        )
        caption_weights = of_captions[scored.positions // targets.shape[2]]
        return caption_weights if weights is None else weights * caption_weights


def build_objective(
    captioner: Captioner,
    config: TrainingConfig,
    *,
    ids: Sequence[ImageId],
    captions: EncodedCaptions,
    weights: Weights,
    seed: int,
    log: Callable[[str], None],
) -> Objective:
    """The objective of `config`: a module (batch, sizes of the update) -> Loss.

    Args:
        ids, captions: of the training images, in the same order; self-critical training uses them as references.
        weights: of these captions and of the words.
        seed: of the run; self-critical samples depend on it, the update and the image.
        log: receives a line if torch.compile does not work here.

    Raises:
        UserError: `compile` is set, and the decoder cannot be compiled.
    """
    if config.self_critical is not None:
        vocabulary, words = captioner.vocabulary, None
        if vocabulary.merges is not None:
            words = WordCaptions(captions, vocabulary, max_length=config.self_critical.max_length)
        references = References(
            words.captions if words else captions,
            vocabulary_size=words.vocabulary_size if words else len(vocabulary),
        )
        return SelfCritical(captioner, config.self_critical, references, ids=ids, seed=seed, words=words)
    token_weights = None if weights.words is None else torch.from_numpy(weights.words)
    device = next(captioner.decoder.parameters()).device
    forward = None
    if config.compile:
        if not captioner.decoder.parallel:
            raise UserError(
                "training.compile: this decoder runs one time step after the other, and every caption length would "
                "be compiled anew; set it to false, or use a decoder of kind transformer or meshed_memory"
            )
        forward = _compile(captioner.decoder.forward, device, log=log)
    return CrossEntropy(captioner, config, token_weights=token_weights, compiled_forward=forward).to(device)


def _compile(
    function: Callable[..., Any], device: torch.device, *, log: Callable[[str], None]
) -> Callable[..., Any]:
    """`function` compiled for any tensor size; unchanged, with a log line, where torch.compile does not work.

    torch reports a missing compiler only at the first use, so a one-line function is compiled first.
    """
    try:
        torch.compile(_probe, fullgraph=True)(torch.ones(2, device=device, requires_grad=True)).backward()
    except Exception as error:  # every backend has its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log(f"training.compile: nothing is compiled, torch.compile does not work here ({reason[0][:200]})")
        return function
    return torch.compile(function, dynamic=True)


def _probe(x: Tensor) -> Tensor:
    return (x.sin() * x + 1).sum()
