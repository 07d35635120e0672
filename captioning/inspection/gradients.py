"""Gradient norms of a word's loss by distance to earlier words, and their decay."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from captioning.errors import UserError
from captioning.models.decoders import (
    Decoder,
    DecoderConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    build,
)
from captioning.tensors import Features

VANISHED = 1e-3
"""A gradient has vanished if its norm is below this share of the norm at distance 1."""

CELLS: tuple[Literal["rnn", "gru", "lstm"], ...] = ("rnn", "gru", "lstm")


class Norms(NamedTuple):
    """Gradient norms of one caption: of the loss at position `at[j]` (j of K) by the t-th input (of T)."""

    at: tuple[int, ...]  # K positions, increasing
    inputs: np.ndarray  # (K, T): d loss / d embedding of the t-th input; 0 after `at[j]`
    states: dict[str, np.ndarray]  # the same for d loss / d state after the t-th input


class Probe(NamedTuple):
    """Mean gradient norms over captions and losses, by distance k = 0, 1 ... D - 1."""

    inputs: np.ndarray  # (D,)
    states: dict[str, np.ndarray]  # "hidden", "cell" (with several layers "layer 1 hidden" ...): (D,)
    counted: np.ndarray  # (D,) int: number of losses with an input at this distance
    common: int  # the largest distance that every loss has
    last_word: np.ndarray  # (P,): of the loss of the last word, by the position of the input; 0 is <start>


class Decay(NamedTuple):
    """An exponential fit of norms by distance."""

    rate: float  # factor by which the norm changes per word of distance
    first: int  # the distances of the fit
    last: int
    r2: float  # of the fit to the logarithm of the norms
    left: float  # norm at `last` divided by the norm at distance 1
    reach: int  # the largest distance before the gradient has vanished; `last` where it does not vanish

    @property
    def half_life(self) -> float:
        """The number of words after which the norm is halved; infinite where it does not fall."""
        return math.log(0.5) / math.log(self.rate) if 0 < self.rate < 1 else math.inf


class _StateReader(nn.Module):
    """Teacher forcing that also returns the states; a module, as `functional_call` replaces its embedding."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, memory: Any) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """`ids` (1, K, T) -> hidden (1, K, T, H), and T tensors (1, K, H) for each state."""
        state = self.decoder.init_state(memory, ids.shape[1])
        steps = []
        for inputs in ids.unbind(2):
            step, state = self.decoder.step(inputs, state, memory)
            if not step.gates:  # no recurrent state, and `forward` is faster
                return self.decoder(ids, memory).hidden, {}
            steps.append(step)
        states: dict[str, list[Tensor]] = {}
        for step in steps:
            for number, gates in enumerate(step.gates, 1):
                prefix = f"layer {number} " if len(step.gates) > 1 else ""
                for name, values in (("hidden", gates.hidden), ("cell", gates.cell)):
                    if values is not None:
                        states.setdefault(prefix + name, []).append(values)
        return torch.stack([step.hidden for step in steps], 2), states


def norms(decoder: Decoder, memory: Any, ids: Sequence[int], at: Sequence[int]) -> Norms:
    """Norms of d loss(t) / d earlier inputs for all t of `at`, with one backward pass.

    Each of the K losses has its own sequence on the K axis, all with the same caption, so gradients of
    different losses do not mix. Every input of every sequence has its own row in the embedding table.

    Args:
        decoder: in eval mode, with parameters that require no gradients, its embedding in `embedding`.
        memory: of one image.
        ids: T + 1 ids, `<start>` first; the t-th input is `ids[t]`, its target `ids[t + 1]`.
        at: K positions t, in 0 .. T - 1.
    """
    embedding = decoder.embedding
    assert isinstance(embedding, nn.Embedding), "a decoder's token embedding is its attribute `embedding`"
    count, length = len(at), len(ids) - 1
    tokens = torch.tensor(ids, device=embedding.weight.device)
    table = embedding.weight.detach()[tokens[:-1]].repeat(count, 1).requires_grad_()  # (K x T, E)
    rows = torch.arange(count * length, device=tokens.device).view(1, count, length)
    positions = torch.tensor(at, device=tokens.device)
    with torch.enable_grad():
        hidden, states = functional_call(
            _StateReader(decoder), {"decoder.embedding.weight": table}, (rows, memory)
        )
        at_losses = hidden[0, torch.arange(count, device=tokens.device), positions]  # (K, H)
        logprobs = torch.log_softmax(decoder.logits(at_losses), -1)
        loss = -logprobs.gather(1, tokens[1:][positions][:, None]).sum()
        state_tensors = [tensor for steps in states.values() for tensor in steps]
        gradients = torch.autograd.grad(
            loss, [table, *state_tensors], allow_unused=True, materialize_grads=True
        )
    state_gradients = iter(gradients[1:])
    return Norms(
        at=tuple(at),
        inputs=gradients[0].view(count, length, -1).norm(dim=-1).cpu().numpy(),
        states={
            name: torch.stack([next(state_gradients)[0].norm(dim=-1) for _ in steps], 1).cpu().numpy()
            for name, steps in states.items()
        },
    )


def loss_positions(length: int, count: int) -> list[int]:
    """At most `count` positions in 0 .. T - 1, evenly over the last quarter: all have long histories."""
    return sorted({round(t) for t in np.linspace(3 * length // 4, length - 1, count)})


@torch.no_grad()
def probe(
    decoder: Decoder,
    features: Features,
    captions: Sequence[Sequence[int]],
    *,
    end: int,
    count: int = 16,
    on_caption: Callable[[], Any] = lambda: None,
) -> Probe:
    """Gradient norms by distance, averaged over captions and losses; in double precision, without dropout.

    Args:
        decoder: is not changed; the probe uses a copy.
        features: of B images.
        captions: B lists of ids, `<start>` first.
        end: the id of `<end>`.
        count: number of losses of each caption, see `loss_positions`, in addition to that of its last word.
        on_caption: called after each caption.
    """
    decoder = copy.deepcopy(decoder).double().eval().requires_grad_(False)
    distances = max(len(ids) for ids in captions) - 1
    sums: dict[str, np.ndarray] = {}
    counted, last_counted = np.zeros(distances, np.int64), np.zeros(distances, np.int64)
    last_word = np.zeros(distances)
    common = distances - 1
    for image, ids in enumerate(captions):
        length = len(ids) - 1
        last = length - 2 if ids[-1] == end and length > 1 else length - 1
        at = sorted({*loss_positions(length, count), last})
        one = slice(image, image + 1)
        memory = decoder.encode_memory(
            Features(
                regions=features.regions[one].double(),
                mask=None if features.mask is None else features.mask[one],
            )
        )
        measured = norms(decoder, memory, ids, at)
        common = min(common, at[0])
        for j, t in enumerate(at):
            counted[: t + 1] += 1
            for name, values in {"inputs": measured.inputs, **measured.states}.items():
                total = sums.setdefault(name, np.zeros(distances))
                total[: t + 1] += values[j, t::-1]
        last_word[: last + 1] += measured.inputs[at.index(last), : last + 1]
        last_counted[: last + 1] += 1
        on_caption()
    reached = counted > 0
    mean = {name: total[reached] / counted[reached] for name, total in sums.items()}
    return Probe(
        inputs=mean.pop("inputs"),
        states=mean,
        counted=counted[reached],
        common=common,
        last_word=last_word[last_counted > 0] / last_counted[last_counted > 0],
    )


def decay(norms: np.ndarray, common: int) -> Decay:
    """A straight line through ln norm at the distances 1 .. `common` (or the last one before norms are 0).

    Args:
        norms: (D,), by distance.
    """
    last = min(common, len(norms) - 1)
    positive = norms[: last + 1] > 0
    if not positive[1:].all():
        last = int(np.argmin(positive[1:]))  # the last distance before the first zero
    if last < 2:
        raise UserError(
            f"gradients exist at {last} distances only, too few to fit a decay; use longer captions"
        )
    k, y = np.arange(1, last + 1), np.log(norms[1 : last + 1])
    slope, intercept = np.polyfit(k, y, 1)
    variance = ((y - y.mean()) ** 2).sum()
    vanished = norms[1 : last + 1] < VANISHED * norms[1]
    return Decay(
        rate=float(np.exp(slope)),
        first=1,
        last=last,
        r2=float(1 - ((y - slope * k - intercept) ** 2).sum() / variance) if variance > 0 else 1.0,
        left=float(norms[last] / norms[1]),
        reach=int(np.argmax(vanished)) if vanished.any() else last,
    )


def label(config: DecoderConfig) -> str:
    """A decoder's name in tables and figures: RNN, GRU or LSTM for soft attention's cells, else its kind."""
    if isinstance(config, SoftAttentionLSTMConfig):
        return config.cell.upper()
    return config.kind.replace("_", " ").capitalize()


def comparable_configs(config: DecoderConfig, *, max_positions: int) -> dict[str, DecoderConfig]:
    """RNN, GRU, LSTM and Transformer with the sizes of `config`, and `config` itself.

    Args:
        max_positions: number of tokens that they must be able to read.
    """
    configs: dict[str, DecoderConfig] = {}
    hidden: int = config.hidden
    if isinstance(config, SoftAttentionLSTMConfig):
        recurrent = config
    else:
        recurrent = SoftAttentionLSTMConfig(embedding=hidden, hidden=hidden, attention_size=hidden)
    for cell in CELLS:
        configs[cell.upper()] = replace(recurrent, cell=cell)
    if isinstance(config, TransformerConfig):
        configs[label(config)] = config
    else:
        heads = next(heads for heads in (4, 2, 1) if hidden % heads == 0)
        configs["Transformer"] = TransformerConfig(
            hidden=hidden, feed_forward=4 * hidden, heads=heads, layers=2, max_length=max_positions
        )
    configs.setdefault(label(config), config)
    return configs


def build_untrained(config: DecoderConfig, *, channels: int, vocabulary_size: int, seed: int) -> Decoder:
    """A newly initialised decoder; the global random state is not changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(config, channels=channels, vocabulary_size=vocabulary_size)
