"""Traces: gates, states and attention of a decoder for each word of a caption."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import image_keys
from captioning.errors import UserError
from captioning.generation import SearchConfig, constraint_ids, search
from captioning.generation.scores import first_tensor
from captioning.models.decoders import Decoder, unroll
from captioning.records import ImageId
from captioning.tensors import Features, SequenceOutput, StepOutput
from captioning.utils.files import atomic_write

GATES = ("input", "forget", "output", "reset", "update")
"""The gates, in the order in which they are reported."""

RETENTION_GATES = ("forget", "update")
"""Gates that multiply the previous state: an LSTM's forget gate, a GRU's update gate."""

SATURATED = 0.1
"""A gate within this distance of 0 or 1 is saturated (Karpathy et al. 2015, section 4.2)."""

NO_GATES = "This decoder exposes no gates or states, so only its attention is traced."


class Trace(NamedTuple):
    """A caption of T tokens, including `<end>` where it was generated."""

    caption: str
    words: tuple[str, ...]  # T words or pieces of words; the last is <end> if the caption is finished
    word_logprobs: np.ndarray  # (T,), nats
    attention: np.ndarray | None  # (T, N): for each word
    layers: tuple[
        dict[str, np.ndarray], ...
    ]  # for each recurrent layer the fields of `Gates`: (T, H) or (T,)


class RecordedStep(NamedTuple):
    """The output of a decoder step, and the ids that each sequence had read."""

    inputs: Tensor  # (B, K, t) int64, <start> first
    output: StepOutput


class RecorderState(NamedTuple):
    decoder_state: Any
    inputs: Tensor  # (B, K, t) int64; a search reorders it with the decoder's state


class Recorder(Decoder):
    """A decoder that appends its steps to a list. Its outputs are those of the wrapped decoder."""

    def __init__(self, decoder: Decoder, steps: list[RecordedStep]):
        super().__init__()
        self.decoder, self.vocabulary_size = decoder, decoder.vocabulary_size
        self._steps = steps
        self.train(decoder.training)

    def encode_memory(self, features: Features) -> Any:
        return self.decoder.encode_memory(features)

    def init_state(self, memory: Any, num_sequences: int) -> RecorderState:
        state = self.decoder.init_state(memory, num_sequences)
        example = first_tensor(state)
        inputs = torch.zeros(len(example), num_sequences, 0, dtype=torch.int64, device=example.device)
        return RecorderState(state, inputs)

    def step(self, ids: Tensor, state: RecorderState, memory: Any) -> tuple[StepOutput, RecorderState]:
        output, decoder_state = self.decoder.step(ids, state.decoder_state, memory)
        inputs = torch.cat([state.inputs, ids[..., None]], -1)
        self._steps.append(RecordedStep(inputs, output))
        return output, RecorderState(decoder_state, inputs)

    def forward(self, ids: Tensor, memory: Any, batch_sizes: Sequence[int] | None = None) -> SequenceOutput:
        return unroll(self, ids, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)


@torch.inference_mode()
def trace_search(
    captioner: Captioner, pixels: Tensor, *, config: SearchConfig | None = None, image_id: ImageId = ""
) -> Trace:
    """The trace of the caption that a search finds, recorded during the search.

    Args:
        captioner: in eval mode, on the device of `pixels`.
        pixels: one preprocessed image, (3, height, width).
        config: the search; None: the model's default.
        image_id: determines the results of a random search, as in `generate_captions`.

    Raises:
        UserError: the search's constraints contain words that are not in the vocabulary, or no caption
            satisfies them.
    """
    vocabulary, steps = captioner.vocabulary, list[RecordedStep]()
    config = config or captioner.search
    hypotheses = search(
        Recorder(captioner.decoder, steps),
        captioner.encode_memory(pixels[None]),
        config,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
        keys=image_keys([image_id], pixels.device),
    )
    length = int(hypotheses.lengths[0, 0])
    if not length:
        raise UserError("no caption satisfies the search's constraints; allow more words or a wider beam")
    ids = hypotheses.ids[0, 0, :length].tolist()
    return _trace(captioner, steps, ids, hypotheses.word_logprobs[0, 0, :length])


@torch.inference_mode()
def trace_text(captioner: Captioner, pixels: Tensor, text: str) -> Trace:
    """The trace of a given caption and its `<end>`, by teacher forcing.

    Raises:
        UserError: the text contains no words, a word that is not in the vocabulary, or more words than the
            decoder can read.
    """
    vocabulary, limit = captioner.vocabulary, captioner.max_positions
    tokens = vocabulary.tokenize(text)
    if not tokens:
        raise UserError(f"--text {text!r}: contains no words")
    if unknown := vocabulary.unknown_words(text):
        raise UserError(f"--text: {unknown[0]!r} is not in the model's vocabulary; leave it out")
    if limit is not None and len(tokens) >= limit:
        raise UserError(
            f"--text: {len(tokens)} {vocabulary.unit}, but this model's decoder reads at most {limit - 1}"
        )
    ids = [*(vocabulary.ids[token] for token in tokens), vocabulary.end]
    steps: list[RecordedStep] = []
    recorder = Recorder(captioner.decoder, steps)
    inputs = torch.tensor([[[vocabulary.start, *ids[:-1]]]], device=pixels.device)
    hidden = recorder(inputs, captioner.encode_memory(pixels[None])).hidden  # (1, 1, T, H)
    logits = recorder.logits(hidden)[0, 0]  # (T, V)
    logprobs = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return _trace(captioner, steps, ids, logprobs[torch.arange(len(ids)), ids])


def _trace(
    captioner: Captioner, recorded: Sequence[RecordedStep], ids: Sequence[int], word_logprobs: Tensor
) -> Trace:
    """The trace of the caption `ids` of the only image, from all recorded steps."""
    inputs = [captioner.vocabulary.start, *ids[:-1]]
    steps = [_find_step(recorded, inputs[: t + 1]) for t in range(len(ids))]
    layers: list[dict[str, np.ndarray]] = []
    for layer in zip(*(step.gates for step in steps), strict=True):  # T Gates
        columns = zip(layer[0]._fields, zip(*layer, strict=True), strict=True)
        layers.append({name: _stack(values) for name, values in columns if values[0] is not None})
    attention = [step.attention for step in steps if step.attention is not None]
    return Trace(
        caption=captioner.vocabulary.text(ids),
        words=tuple(captioner.vocabulary.words[token] for token in ids),
        word_logprobs=word_logprobs.double().cpu().numpy(),
        attention=_stack(attention) if attention else None,
        layers=tuple(layers),
    )


def _find_step(recorded: Sequence[RecordedStep], inputs: Sequence[int]) -> StepOutput:
    """The step of the sequence that had read `inputs`; of several the first, as their outputs are equal."""
    for step in recorded:
        if step.inputs.shape[-1] == len(inputs):
            same = (step.inputs[0] == torch.tensor(inputs, device=step.inputs.device)).all(-1)  # (K,)
            if same.any():
                return _sequence(step.output, int(same.nonzero()[0]))
    raise AssertionError(f"the search returned a caption that it did not read: {inputs}")


def _sequence(output: StepOutput, k: int) -> StepOutput:
    """Sequence k of the only image, its tensors (H,), (N,)."""

    def select(tensor: Any) -> Any:
        return None if tensor is None else tensor[0, k]

    gates = tuple(type(layer)(*map(select, layer)) for layer in output.gates)
    return StepOutput(hidden=select(output.hidden), attention=select(output.attention), gates=gates)


def _stack(rows: Sequence[Any]) -> np.ndarray:
    stacked = torch.stack(list(rows)).cpu()
    return (stacked if stacked.dtype == torch.float64 else stacked.float()).numpy()


def summary(trace: Trace) -> dict[str, Any]:
    """The trace's main numbers for JSON, word by word and in total."""
    total = float(trace.word_logprobs.sum())
    return {
        "caption": trace.caption,
        "words": list(trace.words),
        "logprob": total,
        "confidence": math.exp(total / len(trace.words)),
        "word_logprobs": trace.word_logprobs.tolist(),
        "attention": None if trace.attention is None else _attention_summary(trace.attention),
        "layers": [_layer_summary(layer) for layer in trace.layers],
        **({} if trace.layers else {"note": NO_GATES}),
    }


def _attention_summary(attention: np.ndarray) -> dict[str, Any]:
    """For each word the strongest region, and the effective number of regions: e to the entropy, 1 .. N."""
    total = attention.sum(1, keepdims=True)  # below 1 where a sentinel takes a share
    shares = attention / np.where(total > 0, total, 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    return {
        "regions": attention.shape[1],
        "strongest_region": attention.argmax(1).tolist(),
        "regions_in_use": np.exp(entropy).tolist(),
    }


def _layer_summary(layer: dict[str, np.ndarray]) -> dict[str, Any]:
    numbers: dict[str, Any] = {"units": layer["hidden"].shape[1], "gates": {}}
    for name in GATES:
        if name in layer:
            values = layer[name]
            numbers["gates"][name] = {
                "mean": values.mean(1).tolist(),
                "spread": values.std(1).tolist(),
                "below_0.1": float((values < SATURATED).mean()),
                "above_0.9": float((values > 1 - SATURATED).mean()),
            }
            if name in RETENTION_GATES:
                numbers["half_life"] = {"gate": name, **half_life(values)}
    for name in ("cell", "hidden"):
        if name in layer:
            numbers[f"{name}_norm"] = np.linalg.norm(layer[name], axis=1).tolist()
    if "sentinel" in layer:
        numbers["sentinel"] = layer["sentinel"].tolist()
    return numbers


def half_life(gate: np.ndarray) -> dict[str, Any]:
    """The number of words after which a unit keeps half of its state, according to its retention gate.

    A unit with gate values f_1, f_2 ... keeps exp(mean ln f) of its state per word, and half after
    ln 2 / -mean ln f words. What is written into the state is ignored.

    Args:
        gate: (T, H), values in 0 .. 1.

    Returns:
        "words": 10th percentile, median and 90th percentile over units (None: infinite);
        "longer_than_caption": the share of units that keep half from the first word to the last.
    """
    with np.errstate(divide="ignore"):
        rate = -np.log(gate.astype(np.float64)).mean(0)  # (H,)
        words = np.log(2) / rate
    quantiles = {
        name: float(np.quantile(words, q, method="lower"))
        for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))
    }
    return {
        "words": {name: value if math.isfinite(value) else None for name, value in quantiles.items()},
        "longer_than_caption": float((words > len(gate)).mean()),
    }


def save_arrays(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a `.npz`: words, word_logprobs, attention, and `layer1.forget` and so on for each recurrent layer."""
    arrays: dict[str, Any] = {"words": np.array(trace.words), "word_logprobs": trace.word_logprobs}
    if trace.attention is not None:
        arrays["attention"] = trace.attention
    for number, layer in enumerate(trace.layers, 1):
        arrays |= {f"layer{number}.{name}": values for name, values in layer.items()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
