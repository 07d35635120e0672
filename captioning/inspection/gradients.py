"""How far back a word's loss is felt: gradient norms by distance, and their decay. Draws nothing, trains nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
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
"""A gradient that is a smaller part than this of the one at distance 1 is called vanished."""

CELLS: tuple[Literal["rnn", "gru", "lstm"], ...] = ("rnn", "gru", "lstm")


class Norms(NamedTuple):
    """Gradient norms of one caption's losses: of `at[j]`-th word's loss (j of K) by the t-th input (of T)."""

    at: tuple[int, ...]  # K positions, rising
    inputs: np.ndarray  # (K, T): d loss / d embedding of the word read at t; 0 behind `at[j]`
    states: dict[str, np.ndarray]  # the same for d loss / d state after the word read at t


class Probe(NamedTuple):
    """Mean norms over the captions and the losses that were looked at, by distance k = 0, 1 ... D - 1."""

    inputs: np.ndarray  # (D,)
    states: dict[str, np.ndarray]  # "hidden", "cell" (of several layers "layer 1 hidden" ...): (D,)
    counted: np.ndarray  # (D,) int: losses that have a word so far back
    common: int  # up to this distance all of them have
    last_word: (
        np.ndarray
    )  # (P,): of the caption's last word's loss, by the position of the input, 0 is <start>


class Decay(NamedTuple):
    """How norms fall with distance."""

    rate: float  # what is left of the norm with each word further back: e to the slope of ln norm
    first: int  # the distances of the fit
    last: int
    r2: float  # share of the variance of ln norm that the straight line explains
    left: float  # norm at `last` over norm at distance 1
    reach: int  # the farthest distance before which nothing has vanished; `last` where nothing does

    @property
    def half_life(self) -> float:
        """Words after which half of the norm is left; infinite where it does not fall."""
        return math.log(0.5) / math.log(self.rate) if 0 < self.rate < 1 else math.inf


class _Reader(nn.Module):
    """Reads words and keeps the states; a module, so that `functional_call` can give it another embedding."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, words: Tensor, memory: Any) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """`words` (1, K, T) -> hidden (1, K, T, H), and T tensors (1, K, H) for each state."""
        state = self.decoder.init_state(memory, words.shape[1])
        steps = []
        for word in words.unbind(2):
            step, state = self.decoder.step(word, state, memory)
            if not step.gates:  # no state to look at, so the faster way
                return self.decoder(words, memory).hidden, {}
            steps.append(step)
        states: dict[str, list[Tensor]] = {}
        for step in steps:
            for number, gates in enumerate(step.gates, 1):
                prefix = f"layer {number} " if len(step.gates) > 1 else ""
                for name, values in (("hidden", gates.hidden), ("cell", gates.cell)):
                    if values is not None:
                        states.setdefault(prefix + name, []).append(values)
        return torch.stack([step.hidden for step in steps], 2), states


def norms(decoder: Decoder, memory: Any, words: Sequence[int], at: Sequence[int]) -> Norms:
    """Norms of d loss(word t) / d what was read before, for all t of `at` by one backward pass.

    The K losses belong to K sequences of one image that read the same caption, so that no gradient meets
    another. Each word of each has an embedding of its own, at which its gradient arrives.

    Args:
        decoder: in eval mode, no parameter wanting gradients, with its words' vectors in `embedding`.
        memory: of one image.
        words: T + 1 ids, `<start>` first; the word read at t is `words[t]`, its target `words[t + 1]`.
        at: K positions t, in 0 .. T - 1.
    """
    embedding = decoder.embedding
    assert isinstance(embedding, nn.Embedding), "a decoder's word vectors are its `embedding`"
    count, length = len(at), len(words) - 1
    ids = torch.tensor(words, device=embedding.weight.device)
    table = embedding.weight.detach()[ids[:-1]].repeat(count, 1).requires_grad_()  # (K x T, E)
    read = torch.arange(count * length, device=ids.device).view(1, count, length)
    positions = torch.tensor(at, device=ids.device)
    with torch.enable_grad():
        hidden, states = functional_call(
            _Reader(decoder), {"decoder.embedding.weight": table}, (read, memory)
        )
        chosen = hidden[0, torch.arange(count, device=ids.device), positions]  # (K, H)
        logprob = torch.log_softmax(decoder.logits(chosen), -1)
        loss = -logprob.gather(1, ids[1:][positions][:, None]).sum()
        inside = [state for each in states.values() for state in each]
        slopes = torch.autograd.grad(loss, [table, *inside], allow_unused=True, materialize_grads=True)
    per_state = iter(slopes[1:])
    return Norms(
        at=tuple(at),
        inputs=slopes[0].view(count, length, -1).norm(dim=-1).cpu().numpy(),
        states={
            name: torch.stack([next(per_state)[0].norm(dim=-1) for _ in each], 1).cpu().numpy()
            for name, each in states.items()
        },
    )


def targets(length: int, count: int) -> list[int]:
    """At most `count` of the losses 0 .. T - 1, evenly over the last quarter: all have three quarters before them."""
    return sorted({round(t) for t in np.linspace(3 * length // 4, length - 1, count)})


@torch.no_grad()
def probe(
    decoder: Decoder,
    features: Features,
    captions: Sequence[Sequence[int]],
    *,
    end: int,
    count: int = 16,
    told: Callable[[], Any] = lambda: None,
) -> Probe:
    """Gradient norms by distance, averaged over captions and losses; in double precision, without dropout.

    Args:
        decoder: left as it is; a copy is looked at.
        features: of the images, B.
        captions: B lists of ids, `<start>` first.
        end: the id of `<end>`.
        count: losses of each caption that are looked at, see `targets`; besides, that of its last word.
        told: called after each caption.
    """
    decoder = copy.deepcopy(decoder).double().eval().requires_grad_(False)
    distances = max(len(words) for words in captions) - 1
    counted = np.zeros(distances, np.int64)
    sums: dict[str, np.ndarray] = {}
    last_word = np.zeros(distances)
    last_counted = np.zeros(distances, np.int64)
    common = distances - 1
    for image, words in enumerate(captions):
        length = len(words) - 1
        last = length - 2 if words[-1] == end and length > 1 else length - 1
        at = sorted({*targets(length, count), last})
        one = slice(image, image + 1)
        memory = decoder.encode_memory(
            Features(
                regions=features.regions[one].double(),
                mask=None if features.mask is None else features.mask[one],
            )
        )
        found = norms(decoder, memory, words, at)
        common = min(common, at[0])
        for j, t in enumerate(at):
            counted[: t + 1] += 1
            for name, values in {"inputs": found.inputs, **found.states}.items():
                total = sums.setdefault(name, np.zeros(distances))
                total[: t + 1] += values[j, t::-1]
        last_word[: last + 1] += found.inputs[at.index(last), : last + 1]
        last_counted[: last + 1] += 1
        told()
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
    """A straight line through ln norm at the distances 1 .. `common` (to the last before norms are 0).

    Args:
        norms: (D,), by distance.
    """
    last = min(common, len(norms) - 1)
    positive = norms[: last + 1] > 0
    if not positive[1:].all():
        last = int(np.argmin(positive[1:]))  # the last distance before the first zero
    if last < 2:
        raise UserError(
            f"gradients are there at {last} distances only; the captions are too short to tell a decay by"
        )
    k, y = np.arange(1, last + 1), np.log(norms[1 : last + 1])
    slope, start = np.polyfit(k, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    vanished = norms[1 : last + 1] < VANISHED * norms[1]
    return Decay(
        rate=float(np.exp(slope)),
        first=1,
        last=last,
        r2=float(1 - ((y - slope * k - start) ** 2).sum() / spread) if spread > 0 else 1.0,
        left=float(norms[last] / norms[1]),
        reach=int(np.argmax(vanished)) if vanished.any() else last,
    )


def label(config: DecoderConfig) -> str:
    """What a decoder is called beside others: RNN, GRU, LSTM for the cells of soft attention, else its kind."""
    if isinstance(config, SoftAttentionLSTMConfig):
        return config.cell.upper()
    return config.kind.replace("_", " ").capitalize()


def relatives(config: DecoderConfig, *, max_positions: int) -> dict[str, DecoderConfig]:
    """RNN, GRU, LSTM and Transformer in the sizes of `config`, which is among them where it is one of these.

    Args:
        max_positions: words that they must be able to read.
    """
    sizes: dict[str, DecoderConfig] = {}
    hidden: int = config.hidden
    if isinstance(config, SoftAttentionLSTMConfig):
        recurrent = config
    else:
        recurrent = SoftAttentionLSTMConfig(embedding=hidden, hidden=hidden, attention_size=hidden)
    for cell in CELLS:
        sizes[cell.upper()] = replace(recurrent, cell=cell)
    if isinstance(config, TransformerConfig):
        sizes[label(config)] = config
    else:
        heads = next(heads for heads in (4, 2, 1) if hidden % heads == 0)
        sizes["Transformer"] = TransformerConfig(
            hidden=hidden, feed_forward=4 * hidden, heads=heads, layers=2, max_length=max_positions
        )
    sizes.setdefault(label(config), config)
    return sizes


def fresh(config: DecoderConfig, *, channels: int, vocabulary_size: int, seed: int) -> Decoder:
    """The decoder as training would begin with it; the random numbers of others are left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(config, channels=channels, vocabulary_size=vocabulary_size)


def report(stage: Mapping[str, Sequence[Probe]]) -> dict[str, Any]:
    """For each label its seeds' norms and decays, as JSON: the geometric mean over seeds, lowest, highest."""
    told: dict[str, Any] = {}
    for name, probes in stage.items():
        states = {
            state: {
                **_band([each.states[state] for each in probes]),
                "decay": _decays([each.states[state] for each in probes], probes[0].common),
            }
            for state in probes[0].states
        }
        inputs = [each.inputs for each in probes]
        told[name] = {
            "seeds": len(probes),
            "inputs": {**_band(inputs), "decay": _decays(inputs, probes[0].common)},
            "states": states,
            "last_word": _band([each.last_word for each in probes]),
            "losses_at_distance": probes[0].counted.tolist(),
        }
    return told


def _band(curves: Sequence[np.ndarray]) -> dict[str, list[float]]:
    stacked = np.stack(curves)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(stacked).mean(0))
    return {"mean": mean.tolist(), "low": stacked.min(0).tolist(), "high": stacked.max(0).tolist()}


def _decays(curves: Sequence[np.ndarray], common: int) -> dict[str, Any]:
    fits = [decay(curve, common) for curve in curves]
    halves = [fit.half_life if math.isfinite(fit.half_life) else None for fit in fits]
    rates = [fit.rate for fit in fits]
    return {
        "rate": {"mean": float(np.exp(np.mean(np.log(rates)))), "low": min(rates), "high": max(rates)},
        "half_life": halves,
        "r2": [fit.r2 for fit in fits],
        "distances": [fits[0].first, min(fit.last for fit in fits)],
        "left": [fit.left for fit in fits],
        "reach": [fit.reach for fit in fits],
    }


def verdict(told: Mapping[str, Any], common: int) -> dict[str, str] | None:
    """Is the vanishing gradient there in the RNN and not in the LSTM? By the reach of each seed's gradients.

    Args:
        told: `report` of a stage.
        common: the farthest distance that was measured.

    Returns:
        "answer": yes; partly, where it vanishes in both but in every LSTM later than in any RNN; or no;
        "sentence". None where there is no RNN or no LSTM.
    """
    if not {"RNN", "LSTM"} <= told.keys():
        return None
    rnn, lstm = (told[name]["inputs"]["decay"]["reach"] for name in ("RNN", "LSTM"))
    if max(rnn) < min(lstm):
        answer = "yes" if min(lstm) >= common else "partly"
    else:
        answer = "no"
    felt = [
        f"{_reach(each['reach'], common)} in the {name} ({_half(each['half_life'])})"
        for name, each in ((name, told[name]["inputs"]["decay"]) for name in ("RNN", "LSTM"))
    ]
    return {
        "answer": answer,
        "sentence": f"A word's loss is felt (above {VANISHED:g} of what it is at distance 1) "
        f"{felt[0]} and {felt[1]}."
        + (" Nothing vanishes so near: longer captions tell more." if min(*rnn, *lstm) >= common else ""),
    }


def _half(seeds: Sequence[float | None]) -> str:
    """The half-lives of all seeds; None: it does not fall."""
    known = sorted(math.inf if each is None else each for each in seeds)
    low, high = (f"{each:.1f}" if math.isfinite(each) else "never" for each in (known[0], known[-1]))
    if known[0] == math.inf:
        return "never halved"
    return f"halved in {low} words" if low == high else f"halved in {low} to {high} words"


def _reach(reach: Sequence[int], common: int) -> str:
    low, high = min(reach), max(reach)
    if low >= common:
        return f"over all {common} words measured"
    shown = f"{low}" if low == high else f"{low} to {high}"
    return f"over {shown} words" + (f" of {common}" if high < common else " (all that were measured)")


def table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The decays as text, a row for each decoder, stage and kind of gradient; ranges are over seeds.

    kept a word: what is left of the norm with each word further back (the fit), mean and range; left at the
    end: norm at the last distance of the fit over that at distance 1; reach: see `Decay`.
    """
    rows = [
        ["", "", "seeds", "kept a word", "range", "half-life", "left at the end", "reach", "fit over", "R2"]
    ]
    for stage, told in stages.items():
        for name, each in told.items():
            for what, numbers in (("inputs", each["inputs"]), *each["states"].items()):
                rows.append([*_row(stage, name, what, each["seeds"], numbers["decay"])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(stage: str, name: str, what: str, seeds: int, decay: Mapping[str, Any]) -> list[str]:
    rate = decay["rate"]
    left, reach = decay["left"], decay["reach"]
    return [
        stage,
        f"{name}, by {what}",
        str(seeds),
        f"{rate['mean']:.3f}",
        f"{rate['low']:.3f}-{rate['high']:.3f}",
        _half(decay["half_life"]).removeprefix("halved in "),
        f"{np.exp(np.mean(np.log(left))):.1e}",
        f"{min(reach)}-{max(reach)}" if min(reach) < max(reach) else str(reach[0]),
        f"{decay['distances'][0]}-{decay['distances'][1]}",
        f"{np.mean(decay['r2']):.2f}",
    ]
