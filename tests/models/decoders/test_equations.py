"""Every recurrent decoder beside its paper's equations, written plainly: NumPy, one image and one word at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from captioning.models.decoders import (
    AdaptiveAttentionConfig,
    AoAConfig,
    Att2inConfig,
    HardAttentionLSTMConfig,
    ShowTellConfig,
    SoftAttentionLSTMConfig,
    UpDownConfig,
    build,
)
from captioning.tensors import Features

CHANNELS, VOCABULARY = 19, 29


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    each = np.exp(x - x.max())
    return each / each.sum()


class Weights:
    """`w("name")`: a parameter; `w.linear("name", x)`: a layer; `w.rows`: some rows of a matrix, by their sizes."""

    def __init__(self, decoder):
        self.all = {name: each.detach().numpy() for name, each in decoder.named_parameters()}

    def __call__(self, name):
        return self.all[name]

    def linear(self, name, x):
        return self.all[f"{name}.weight"] @ x + self.all.get(f"{name}.bias", 0.0)

    def rows(self, name, *sizes):
        parts = np.split(self.all[f"{name}.weight"], np.cumsum(sizes))
        assert len(parts[-1]) == 0
        return parts[:-1]


def lstm(pre, c):
    i, f, g, o = np.split(pre, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(entered, recalled, bias, h):
    (er, ez, en), (rr, rz, rn) = np.split(entered, 3), np.split(recalled, 3)
    n = np.tanh(en + sigmoid(er + rr) * (rn + bias))
    z = sigmoid(ez + rz)
    return (1 - z) * n + z * h


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def projected(w, a):
    """As they are, or through `project`."""
    if "project.0.weight" not in w.all:
        return a
    seen = [w.linear("project.0", each) for each in a]
    if "project.1.weight" in w.all:
        seen = [layer_norm(each, w("project.1.weight"), w("project.1.bias")) for each in seen]
    return np.maximum(seen, 0)


def additive(w, a, query, *, prefix="attention."):
    keys = [w.linear(f"{prefix}key_proj", each) for each in a]
    return softmax(np.array([w(f"{prefix}score_weight") @ np.tanh(key + query) for key in keys]))


def heads_attention(q, keys, values, heads):
    """Context (A,) and the mean of the heads' weights (N,)."""
    context, shown = [], []
    for each, key, value in zip(
        np.split(q, heads), np.split(keys, heads, 1), np.split(values, heads, 1), strict=True
    ):
        alpha = softmax(key @ each / np.sqrt(len(each)))
        context.append(alpha @ value)
        shown.append(alpha)
    return np.concatenate(context), np.mean(shown, 0)


def soft_or_hard_attention(w, config, a, words, *, hard):
    a, size = projected(w, a), config.hidden
    blocks = {"lstm": 4, "gru": 3, "rnn": 1}[getattr(config, "cell", "lstm")] * size
    h = np.tanh(w.linear("state_init.0", a.mean(0)))
    c = np.tanh(w.linear("state_init.1", a.mean(0))) if blocks == 4 * size else None
    to_gates, to_query, *to_beta = w.rows(
        "hidden_proj", blocks, config.attention_size, *([] if hard else [1])
    )
    for word in words:
        query = to_query @ h
        way = "additive" if hard else config.attention
        if hard:
            alpha = additive(w, a, query, prefix="")
            z = a[alpha.argmax()]
        elif way == "additive":
            alpha = additive(w, a, query)
            z = alpha @ a
        elif way == "dot":
            alpha = softmax(
                np.array([w.linear("attention.key_proj", each) @ query for each in a]) / len(query) ** 0.5
            )
            z = alpha @ a
        else:
            keys, values = (
                np.array([w.linear(name, each) for each in a])
                for name in ("attention.key_proj", "attention.value_proj")
            )
            z, alpha = heads_attention(query, keys, values, config.heads)
        if to_beta:
            z = sigmoid(to_beta[0] @ h + w("beta_bias")) * z
        y = w("embedding.weight")[word]
        entered = w.linear("input_proj", y) + w.linear("context_proj", z)
        if blocks == 4 * size:
            h, c = lstm(entered + to_gates @ h, c)
        elif blocks == 3 * size:
            h = gru(entered, to_gates @ h, w("cell.bias"), h)
        else:
            h = np.tanh(entered + to_gates @ h)
        yield w.linear("vocab_projection", np.tanh(w.linear("deep_output", np.concatenate([h, z, y])))), alpha


def soft_attention_lstm(w, config, a, words):
    return soft_or_hard_attention(w, config, a, words, hard=False)


def hard_attention_lstm(w, config, a, words):
    return soft_or_hard_attention(w, config, a, words, hard=True)


def show_tell(w, config, a, words):
    inputs = [w.linear("image_proj", a.mean(0)), *(w("embedding.weight")[word] for word in words)]
    h = c = np.zeros(config.hidden)
    for t, x in enumerate(inputs):
        entered, recalled = w.linear("input_proj", x), w.linear("hidden_proj", h)
        if config.cell == "lstm":
            h, c = lstm(entered + recalled, c)
        elif config.cell == "gru":
            h = gru(entered, recalled, w("cell.bias"), h)
        else:
            h = np.tanh(entered + recalled)
        if t:
            yield w.linear("vocab_projection", h), None


def adaptive_attention(w, config, a, words):
    size = config.hidden
    v = projected(w, a)
    whole = np.maximum(w.linear("mean_project.0", a.mean(0)), 0)
    (word_lstm, word_gate), (whole_lstm, whole_gate), (own_lstm, own_gate) = (
        w.rows(name, 4 * size, size) for name in ("input_proj", "mean_proj", "hidden_proj")
    )
    lstm_bias, gate_bias = np.split(w("input_proj.bias"), [4 * size])
    h = m = np.zeros(size)
    for word in words:
        y, before = w("embedding.weight")[word], h
        h, m = lstm(word_lstm @ y + whole_lstm @ whole + own_lstm @ before + lstm_bias, m)
        g = sigmoid(word_gate @ y + whole_gate @ whole + own_gate @ before + gate_bias)
        s = g * np.tanh(m)
        z = [
            w("score_weight") @ np.tanh(w.linear("key_proj", each) + w.linear("query_proj", h)) for each in v
        ]
        last = w("score_weight") @ np.tanh(w.linear("sentinel_key_proj", s) + w.linear("query_proj", h))
        alpha, beta = softmax(np.array(z)), softmax(np.array([*z, last]))[-1]
        seen = beta * s + (1 - beta) * (alpha @ v)
        yield w.linear("vocab_projection", seen + h), alpha, beta


def att2in(w, config, a, words):
    a, size = projected(w, a), config.hidden
    sizes = [size] * 5
    from_word, bias = w.rows("input_proj", *sizes), np.split(w("input_proj.bias"), 5)
    *from_state, to_query = w.rows("hidden_proj", *sizes, config.attention_size)
    from_seen = w.rows("context_proj", size, size)
    h = c = np.zeros(size)
    for word in words:
        x = w("embedding.weight")[word]
        alpha = additive(w, a, to_query @ h)
        seen = alpha @ a
        i, f, o, one, two = (from_word[j] @ x + from_state[j] @ h + bias[j] for j in range(5))
        g = np.maximum(one + from_seen[0] @ seen, two + from_seen[1] @ seen)
        c = sigmoid(i) * g + sigmoid(f) * c
        h = sigmoid(o) * np.tanh(c)
        yield w.linear("vocab_projection", h), alpha


def up_down(w, config, a, words):
    v, size = projected(w, a), config.hidden
    told, to_query = w.rows("attention_hidden_proj", 4 * size, config.attention_size)
    recall, heard = w("attention_lstm_proj.weight"), w("language_lstm_proj.weight")
    # the matrices of both LSTMs as in the paper: of [inputs, state]
    first = np.concatenate(
        [recall[:, size:], w("mean_proj.weight"), w("input_proj.weight"), recall[:, :size]], 1
    )
    second = np.concatenate([heard[:, :-size], told, heard[:, -size:]], 1)
    h1 = c1 = h2 = c2 = np.zeros(size)
    for word in words:
        x1 = np.concatenate([h2, v.mean(0), w("embedding.weight")[word]])
        h1, c1 = lstm(first @ np.concatenate([x1, h1]) + w("input_proj.bias"), c1)
        alpha = additive(w, v, to_query @ h1)
        h2, c2 = lstm(second @ np.concatenate([alpha @ v, h1, h2]) + w("language_bias"), c2)
        yield w.linear("vocab_projection", h2), alpha


def aoa(w, config, a, words):
    a, size = projected(w, a), config.hidden

    def judged(weight, bias, seen, query):
        both = weight @ np.concatenate([seen, query]) + bias
        return sigmoid(both[size:]) * both[:size]

    for n in range(config.refining):
        name = f"refining.{n}"
        q, k, v = np.split(np.array([w.linear(f"{name}.qkv_proj", each) for each in a]), 3, 1)
        weight, bias = w(f"{name}.aoa_proj.weight"), w(f"{name}.aoa_proj.bias")
        each = [judged(weight, bias, heads_attention(query, k, v, config.heads)[0], query) for query in q]
        norm = w(f"{name}.norm.weight"), w(f"{name}.norm.bias")
        a = np.array([layer_norm(old + new, *norm) for old, new in zip(a, each, strict=True)])
    keys, values = (
        np.array([w.linear(f"attention.{name}", each) for each in a]) for name in ("key_proj", "value_proj")
    )
    from_seen, from_state = np.split(w("hidden_proj.weight"), 2, 1)
    h = m = seen = np.zeros(size)
    for word in words:
        entered = w.linear("input_proj", w("embedding.weight")[word]) + from_seen @ (a.mean(0) + seen)
        h, m = lstm(entered + from_state @ h, m)
        query = w.linear("query_proj", h)
        found, alpha = heads_attention(query, keys, values, config.heads)
        seen = judged(w("aoa_proj.weight"), w("aoa_bias"), found, query)
        yield w.linear("vocab_projection", seen), alpha


SIZES = {"embedding": 7, "hidden": 13}
CASES = {
    "soft": (soft_attention_lstm, SoftAttentionLSTMConfig(**SIZES, attention_size=17)),
    "soft, projected": (soft_attention_lstm, SoftAttentionLSTMConfig(**SIZES, attention_size=5, features=11)),
    "soft, gru, dot": (
        soft_attention_lstm,
        SoftAttentionLSTMConfig(**SIZES, attention_size=17, cell="gru", attention="dot"),
    ),
    "soft, rnn, multi_head": (
        soft_attention_lstm,
        SoftAttentionLSTMConfig(**SIZES, attention_size=15, heads=5, cell="rnn", attention="multi_head"),
    ),
    "hard": (hard_attention_lstm, HardAttentionLSTMConfig(**SIZES, attention_size=17)),
    "hard, projected": (hard_attention_lstm, HardAttentionLSTMConfig(**SIZES, attention_size=5, features=11)),
    "show_tell": (show_tell, ShowTellConfig(**SIZES)),
    "show_tell, gru": (show_tell, ShowTellConfig(**SIZES, cell="gru")),
    "show_tell, rnn": (show_tell, ShowTellConfig(**SIZES, cell="rnn")),
    "adaptive": (adaptive_attention, AdaptiveAttentionConfig(**SIZES, attention_size=17)),
    "att2in": (att2in, Att2inConfig(**SIZES, attention_size=17)),
    "att2in, projected": (att2in, Att2inConfig(**SIZES, attention_size=5, features=11)),
    "up_down": (up_down, UpDownConfig(**SIZES, attention_size=17)),
    "up_down, projected": (up_down, UpDownConfig(**SIZES, attention_size=5, features=11)),
    "aoa": (aoa, AoAConfig(embedding=7, hidden=15, heads=3, refining=0)),
    "aoa, refined": (aoa, AoAConfig(embedding=7, hidden=15, heads=5, refining=2)),
}


def made(config):
    torch.manual_seed(0)
    decoder = build(dataclasses.replace(config, dropout=0.0), channels=CHANNELS, vocabulary_size=VOCABULARY)
    for parameter in decoder.parameters():  # away from initialisations at zero, which hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return decoder.double().eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_decoder_against_its_equations(name):
    reference, config = CASES[name]
    decoder = made(config)
    images, sequences, regions, length = 2, 3, 5, 7
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(images, regions, CHANNELS, generator=generator, dtype=torch.double)
    words = torch.randint(VOCABULARY, (images, sequences, length), generator=generator)
    mask = torch.tensor([[True, False, True, True, True], [True, True, False, True, False]])
    for there in (torch.ones_like(mask), mask):
        steps = decoder(words, decoder.encode_memory(Features(seen, None if there.all() else there)))
        logits = decoder.logits(steps.hidden)
        for image in range(images):
            a = seen[image][there[image]].numpy()
            for k in range(sequences):
                plain = reference(Weights(decoder), decoder.config, a, words[image, k].tolist())
                for t, (expected, alpha, *_) in enumerate(plain):
                    np.testing.assert_allclose(logits[image, k, t], expected, rtol=1e-9, atol=1e-9)
                    if alpha is None:
                        assert steps.attention is None
                        continue
                    shown = steps.attention[image, k, t]
                    np.testing.assert_allclose(shown[there[image]], alpha, rtol=1e-9, atol=1e-12)
                    assert (shown[~there[image]] == 0).all()
                assert t == length - 1
