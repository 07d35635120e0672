"""What a decoder computes inside for each word of a caption: gates, states, attention. Changes no number."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import image_key
from captioning.errors import UserError
from captioning.generation import SearchConfig, constraint_ids, search
from captioning.models.decoders import Decoder, unroll
from captioning.records import ImageId
from captioning.tensors import Features, SequenceOutput, StepOutput
from captioning.text.tokenizer import tokenize
from captioning.utils.files import atomic_write

GATES = ("input", "forget", "output", "reset", "update")
"""What lies in 0 .. 1, in the order in which it is told."""

KEEPS = ("forget", "update")
"""Gates that multiply the old state: an LSTM's forget gate, a GRU's update gate."""

SATURATED = 0.1
"""A gate nearer than this to 0 or 1 is shut or open (Karpathy et al. 2015, section 4.2)."""

NO_GATES = "This decoder exposes no gates or states, so only its attention is traced."


class Trace(NamedTuple):
    """A caption of T words, the end of caption counted where it was produced."""

    words: tuple[str, ...]  # T; the last is <end> where the caption ended
    word_logprobs: np.ndarray  # (T,), nats
    attention: np.ndarray | None  # (T, N): with which each word was chosen
    layers: tuple[dict[str, np.ndarray], ...]  # a recurrent layer: Gates' fields that it has, (T, H) or (T,)


class Seen(NamedTuple):
    """A step as it was taken, and what each sequence had read by then."""

    read: Tensor  # (B, K, t) int64, <start> first
    step: StepOutput


class State(NamedTuple):
    inner: Any  # the decoder's own
    read: Tensor  # (B, K, t) int64; a search reorders it with the rest


class Recorder(Decoder):
    """A decoder that shows its steps: each is put into `seen`. Its answers are the decoder's own tensors."""

    def __init__(self, decoder: Decoder, seen: list[Seen]):
        super().__init__()
        self.decoder, self.vocabulary_size = decoder, decoder.vocabulary_size
        self._seen = seen
        self.train(decoder.training)

    def encode_memory(self, features: Features) -> Any:
        return self.decoder.encode_memory(features)

    def init_state(self, memory: Any, num_sequences: int) -> State:
        inner = self.decoder.init_state(memory, num_sequences)
        tensor: Any = inner
        while not isinstance(tensor, Tensor):
            tensor = tensor[0]
        return State(
            inner, torch.zeros(len(tensor), num_sequences, 0, dtype=torch.int64, device=tensor.device)
        )

    def step(self, words: Tensor, state: State, memory: Any) -> tuple[StepOutput, State]:
        step, inner = self.decoder.step(words, state.inner, memory)
        read = torch.cat([state.read, words[..., None]], -1)
        self._seen.append(Seen(read, step))
        return step, State(inner, read)

    def forward(self, words: Tensor, memory: Any, batch_sizes: Sequence[int] | None = None) -> SequenceOutput:
        return unroll(self, words, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)


@torch.inference_mode()
def trace_search(
    captioner: Captioner, pixels: Tensor, *, config: SearchConfig | None = None, image_id: ImageId = ""
) -> Trace:
    """The trace of the caption that the model's own search finds: of the very steps that the search took.

    Args:
        captioner: in eval mode, on the device of `pixels`.
        pixels: one prepared image, (3, height, width).
        config: the search; None: the model's own.
        image_id: by which a random search tells images apart, as in `generate_captions`.

    Raises:
        UserError: the search's rules name words that the model does not know, or leave no caption.
    """
    vocabulary, seen = captioner.vocabulary, list[Seen]()
    config = config or captioner.search
    found = search(
        Recorder(captioner.decoder, seen),
        captioner.encode_memory(pixels[None]),
        config,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
        keys=torch.tensor([image_key(image_id)], device=pixels.device),
    )
    length = int(found.lengths[0, 0])
    if not length:
        raise UserError("no caption satisfies the search's constraints; allow more words or a wider beam")
    ids = found.ids[0, 0, :length].tolist()
    return _trace(captioner, seen, ids, found.word_logprobs[0, 0, :length])


@torch.inference_mode()
def trace_text(captioner: Captioner, pixels: Tensor, text: str) -> Trace:
    """The trace of a given caption, which the model reads word by word to its end (teacher forced).

    Raises:
        UserError: no words, one that is not of the vocabulary, or more than the decoder can read.
    """
    vocabulary, longest = captioner.vocabulary, captioner.max_positions
    tokens = tokenize(text)
    if not tokens:
        raise UserError(f"--text {text!r}: holds no words")
    for token in tokens:
        if vocabulary.ids.get(token, vocabulary.unk) <= vocabulary.unk:
            raise UserError(f"--text: {token!r} is not a word of the model's vocabulary; leave it out")
    if longest is not None and len(tokens) >= longest:
        raise UserError(
            f"--text: {len(tokens)} words, but this model's decoder reads no more than {longest - 1}"
        )
    ids = [*(vocabulary.ids[token] for token in tokens), vocabulary.end]
    seen: list[Seen] = []
    recorder = Recorder(captioner.decoder, seen)
    memory = captioner.encode_memory(pixels[None])
    read = torch.tensor([[[vocabulary.start, *ids[:-1]]]], device=pixels.device)
    hidden = recorder(read, memory).hidden  # (1, 1, T, H)
    logits = recorder.logits(hidden)[0, 0]  # (T, V)
    logprob = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return _trace(captioner, seen, ids, logprob[torch.arange(len(ids)), ids])


def _trace(captioner: Captioner, seen: Sequence[Seen], ids: Sequence[int], word_logprobs: Tensor) -> Trace:
    """The steps by which the only image's sequence `ids` was read, out of all that were taken."""
    read = [captioner.vocabulary.start, *ids[:-1]]
    steps = [_step_of(seen, read[: t + 1]) for t in range(len(ids))]
    layers: list[dict[str, np.ndarray]] = []
    for gates in zip(*(step.gates for step in steps), strict=True):
        rows = (zip(gates[0]._fields, each, strict=True) for each in gates)
        kept = [{name: value for name, value in row if value is not None} for row in rows]
        layers.append({name: _array([row[name] for row in kept]) for name in kept[0]})
    shown = [step.attention for step in steps if step.attention is not None]
    return Trace(
        words=tuple(captioner.vocabulary.words[number] for number in ids),
        word_logprobs=word_logprobs.double().cpu().numpy(),
        attention=_array(shown) if shown else None,
        layers=tuple(layers),
    )


def _step_of(seen: Sequence[Seen], read: Sequence[int]) -> StepOutput:
    """The step of the sequence that had read `read`; of several the first, for they computed the same."""
    for each in seen:
        if each.read.shape[-1] == len(read):
            same = (each.read[0] == torch.tensor(read, device=each.read.device)).all(-1)  # (K,)
            if same.any():
                return _row(each.step, int(same.nonzero()[0]))
    raise AssertionError(f"the search found a caption that it did not read: {read}")


def _row(step: StepOutput, k: int) -> StepOutput:
    """Sequence k of the only image, its tensors (H,), (N,)."""

    def row(tensor: Any) -> Any:
        return None if tensor is None else tensor[0, k]

    gates = tuple(type(layer)(*map(row, layer)) for layer in step.gates)
    return StepOutput(hidden=row(step.hidden), attention=row(step.attention), gates=gates)


def _array(rows: Sequence[Tensor]) -> np.ndarray:
    stacked = torch.stack(list(rows)).cpu()
    return (stacked if stacked.dtype == torch.float64 else stacked.float()).numpy()


def summary(trace: Trace) -> dict[str, Any]:
    """The trace's numbers that can be read, as JSON: word by word, and what they come to."""
    total = float(trace.word_logprobs.sum())
    words = [word for word in trace.words if word != "<end>"]
    return {
        "caption": " ".join(words),
        "words": list(trace.words),
        "logprob": total,
        "confidence": math.exp(total / len(trace.words)),
        "word_logprobs": trace.word_logprobs.tolist(),
        "attention": None if trace.attention is None else _attention_summary(trace.attention),
        "layers": [_layer_summary(layer) for layer in trace.layers],
        **({} if trace.layers else {"note": NO_GATES}),
    }


def _attention_summary(attention: np.ndarray) -> dict[str, Any]:
    """For each word the region seen most and over how many the look is spread: e to the entropy, 1 .. N."""
    total = attention.sum(1, keepdims=True)  # not 1 where a sentinel takes a part
    shares = attention / np.where(total > 0, total, 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    return {
        "regions": attention.shape[1],
        "strongest_region": attention.argmax(1).tolist(),
        "regions_in_use": np.exp(entropy).tolist(),
    }


def _layer_summary(layer: dict[str, np.ndarray]) -> dict[str, Any]:
    told: dict[str, Any] = {"units": layer["hidden"].shape[1], "gates": {}}
    for name in GATES:
        if name in layer:
            values = layer[name]
            told["gates"][name] = {
                "mean": values.mean(1).tolist(),
                "spread": values.std(1).tolist(),
                "below_0.1": float((values < SATURATED).mean()),
                "above_0.9": float((values > 1 - SATURATED).mean()),
            }
            if name in KEEPS:
                told["half_life"] = {"gate": name, **half_life(values)}
    for name in ("cell", "hidden"):
        if name in layer:
            told[f"{name}_norm"] = np.linalg.norm(layer[name], axis=1).tolist()
    if "sentinel" in layer:
        told["sentinel"] = layer["sentinel"].tolist()
    return told


def half_life(kept: np.ndarray) -> dict[str, Any]:
    """After how many words half of what a unit held is left, by what its gate kept in this caption.

    A unit whose gate keeps f_1, f_2 ... of its state keeps exp(mean ln f) a word, and half after
    ln 2 / -mean ln f. Written over what was there is not counted: it is the gate alone that is asked.

    Args:
        kept: (T, H), each in 0 .. 1.

    Returns:
        "words": its tenth, median and ninetieth percentile over units (None: it never fades);
        "longer_than_caption": the share of units that keep half from the first word to the last.
    """
    with np.errstate(divide="ignore"):
        rate = -np.log(kept.astype(np.float64)).mean(0)  # (H,)
        words = np.log(2) / rate
    told = [float(np.quantile(words, q, method="lower")) for q in (0.1, 0.5, 0.9)]
    names = ("p10", "median", "p90")
    return {
        "words": {
            name: value if math.isfinite(value) else None for name, value in zip(names, told, strict=True)
        },
        "longer_than_caption": float((words > len(kept)).mean()),
    }


def save_arrays(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a `.npz`: words, word_logp, attention, and `layer1.forget` and so on for each recurrent layer."""
    arrays: dict[str, Any] = {"words": np.array(trace.words), "word_logprobs": trace.word_logprobs}
    if trace.attention is not None:
        arrays["attention"] = trace.attention
    for number, layer in enumerate(trace.layers, 1):
        arrays |= {f"layer{number}.{name}": values for name, values in layer.items()}
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
