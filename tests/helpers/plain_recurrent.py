"""Recurrent decoders written from the papers' equations in NumPy, one image and one token at a time, as an oracle.

Every decoder here is a generator of logits (V,) and attention (N,) per step, for regions (N, D) and ids (T,).
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


class Weights:
    """A decoder's parameters: `w("name")` is one, `w.linear("name", x)` applies a layer, `w.rows` splits a matrix."""

    def __init__(self, decoder):
        self.parameters = {name: value.detach().numpy() for name, value in decoder.named_parameters()}

    def __call__(self, name):
        return self.parameters[name]

    def __contains__(self, name):
        return name in self.parameters

    def linear(self, name, x):
        return self(f"{name}.weight") @ x + self.parameters.get(f"{name}.bias", 0.0)

    def rows(self, name, *sizes):
        """Consecutive rows of a layer's matrix, `sizes[0]` of them first, and so on to the last row."""
        *parts, rest = np.split(self(f"{name}.weight"), np.cumsum(sizes))
        assert len(rest) == 0
        return parts


def lstm(gates, c):
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(input_gates, hidden_gates, bias, h):
    (input_r, input_z, input_n), (hidden_r, hidden_z, hidden_n) = (
        np.split(gates, 3) for gates in (input_gates, hidden_gates)
    )
    n = np.tanh(input_n + sigmoid(input_r + hidden_r) * (hidden_n + bias))
    z = sigmoid(input_z + hidden_z)
    return (1 - z) * n + z * h


def update(w, config, input_gates, hidden_gates, h, c):
    """The cell that `config.cell` names."""
    cell = getattr(config, "cell", "lstm")
    if cell == "lstm":
        return lstm(input_gates + hidden_gates, c)
    if cell == "gru":
        return gru(input_gates, hidden_gates, w("cell.bias"), h), None
    return np.tanh(input_gates + hidden_gates), None


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def projected(w, regions):
    """The regions after `project`, if there is one."""
    if "project.0.weight" not in w:
        return regions
    regions = [w.linear("project.0", a) for a in regions]
    if "project.1.weight" in w:
        regions = [layer_norm(a, w("project.1.weight"), w("project.1.bias")) for a in regions]
    return np.maximum(regions, 0)


def additive(w, regions, query, *, prefix="attention."):
    keys = [w.linear(f"{prefix}key_proj", a) for a in regions]
    return softmax(np.array([w(f"{prefix}score_weight") @ np.tanh(key + query) for key in keys]))


def multi_head(query, keys, values, heads):
    """Context (A,) and the heads' mean attention (N,)."""
    context, attention = [], []
    parts = (np.split(query, heads), np.split(keys, heads, 1), np.split(values, heads, 1))
    for head_query, head_keys, head_values in zip(*parts, strict=True):
        alpha = softmax(head_keys @ head_query / np.sqrt(len(head_query)))
        context.append(alpha @ head_values)
        attention.append(alpha)
    return np.concatenate(context), np.mean(attention, 0)


def keys_and_values(w, regions):
    return (
        np.array([w.linear(f"attention.{name}", a) for a in regions]) for name in ("key_proj", "value_proj")
    )


def soft_context(w, config, regions, query):
    """Context and attention of soft attention."""
    if config.attention == "multi_head":
        return multi_head(query, *keys_and_values(w, regions), config.heads)
    if config.attention == "dot":
        scores = [w.linear("attention.key_proj", a) @ query / len(query) ** 0.5 for a in regions]
        alpha = softmax(np.array(scores))
    else:
        alpha = additive(w, regions, query)
    return alpha @ regions, alpha


def soft_attention_lstm(w, config, regions, ids):
    regions, size = projected(w, regions), config.hidden
    gate_size = {"lstm": 4, "gru": 3, "rnn": 1}[config.cell] * size
    h = np.tanh(w.linear("state_init.0", regions.mean(0)))
    c = np.tanh(w.linear("state_init.1", regions.mean(0))) if config.cell == "lstm" else None
    gates_of_h, query_of_h, beta_of_h = w.rows("hidden_proj", gate_size, config.attention_size, 1)
    for token in ids:
        z, alpha = soft_context(w, config, regions, query_of_h @ h)
        z = sigmoid(beta_of_h @ h + w("beta_bias")) * z
        y = w("embedding.weight")[token]
        input_gates = w.linear("input_proj", y) + w.linear("context_proj", z)
        h, c = update(w, config, input_gates, gates_of_h @ h, h, c)
        yield w.linear("vocab_projection", np.tanh(w.linear("deep_output", np.concatenate([h, z, y])))), alpha


def hard_attention_lstm(w, config, regions, ids):
    regions, size = projected(w, regions), config.hidden
    h = np.tanh(w.linear("state_init.0", regions.mean(0)))
    c = np.tanh(w.linear("state_init.1", regions.mean(0)))
    gates_of_h, query_of_h = w.rows("hidden_proj", 4 * size, config.attention_size)
    for token in ids:
        alpha = additive(w, regions, query_of_h @ h, prefix="")
        z, y = regions[alpha.argmax()], w("embedding.weight")[token]
        input_gates = w.linear("input_proj", y) + w.linear("context_proj", z)
        h, c = lstm(input_gates + gates_of_h @ h, c)
        yield w.linear("vocab_projection", np.tanh(w.linear("deep_output", np.concatenate([h, z, y])))), alpha


def show_tell(w, config, regions, ids):
    inputs = [w.linear("image_proj", regions.mean(0)), *(w("embedding.weight")[token] for token in ids)]
    h = c = np.zeros(config.hidden)
    for t, x in enumerate(inputs):
        h, c = update(w, config, w.linear("input_proj", x), w.linear("hidden_proj", h), h, c)
        if t:
            yield w.linear("vocab_projection", h), None


def adaptive_attention(w, config, regions, ids):
    size = config.hidden
    v = projected(w, regions)
    mean = np.maximum(w.linear("mean_project.0", regions.mean(0)), 0)
    (gates_of_y, sentinel_of_y), (gates_of_mean, sentinel_of_mean), (gates_of_h, sentinel_of_h) = (
        w.rows(name, 4 * size, size) for name in ("input_proj", "mean_proj", "hidden_proj")
    )
    gate_bias, sentinel_bias = np.split(w("input_proj.bias"), [4 * size])
    h = m = np.zeros(size)
    for token in ids:
        y, last = w("embedding.weight")[token], h
        h, m = lstm(gates_of_y @ y + gates_of_mean @ mean + gates_of_h @ last + gate_bias, m)
        g = sigmoid(sentinel_of_y @ y + sentinel_of_mean @ mean + sentinel_of_h @ last + sentinel_bias)
        s = g * np.tanh(m)
        query = w.linear("query_proj", h)
        z = [w("score_weight") @ np.tanh(w.linear("key_proj", a) + query) for a in v]
        sentinel_score = w("score_weight") @ np.tanh(w.linear("sentinel_key_proj", s) + query)
        alpha, beta = softmax(np.array(z)), softmax(np.array([*z, sentinel_score]))[-1]
        mixture = beta * s + (1 - beta) * (alpha @ v)
        yield w.linear("vocab_projection", mixture + h), alpha


def att2in(w, config, regions, ids):
    regions, size = projected(w, regions), config.hidden
    sizes = [size] * 5
    of_x, bias = w.rows("input_proj", *sizes), np.split(w("input_proj.bias"), 5)
    *of_h, query_of_h = w.rows("hidden_proj", *sizes, config.attention_size)
    of_z = w.rows("context_proj", size, size)
    h = c = np.zeros(size)
    for token in ids:
        x = w("embedding.weight")[token]
        alpha = additive(w, regions, query_of_h @ h)
        z = alpha @ regions
        i, f, o, unit_a, unit_b = (of_x[j] @ x + of_h[j] @ h + bias[j] for j in range(5))
        g = np.maximum(unit_a + of_z[0] @ z, unit_b + of_z[1] @ z)
        c = sigmoid(i) * g + sigmoid(f) * c
        h = sigmoid(o) * np.tanh(c)
        yield w.linear("vocab_projection", h), alpha


def up_down(w, config, regions, ids):
    v, size = projected(w, regions), config.hidden
    language_of_h1, query_of_h1 = w.rows("attention_hidden_proj", 4 * size, config.attention_size)
    attention_lstm, language_lstm = w("attention_lstm_proj.weight"), w("language_lstm_proj.weight")
    # the matrices of both LSTMs as in the paper: of [inputs, state]
    first = np.concatenate(
        [
            attention_lstm[:, size:],
            w("mean_proj.weight"),
            w("input_proj.weight"),
            attention_lstm[:, :size],
        ],
        1,
    )
    second = np.concatenate([language_lstm[:, :-size], language_of_h1, language_lstm[:, -size:]], 1)
    h1 = c1 = h2 = c2 = np.zeros(size)
    for token in ids:
        x1 = np.concatenate([h2, v.mean(0), w("embedding.weight")[token]])
        h1, c1 = lstm(first @ np.concatenate([x1, h1]) + w("input_proj.bias"), c1)
        alpha = additive(w, v, query_of_h1 @ h1)
        h2, c2 = lstm(second @ np.concatenate([alpha @ v, h1, h2]) + w("language_bias"), c2)
        yield w.linear("vocab_projection", h2), alpha


def attention_on_attention(weight, bias, attended, query):
    information, gate = np.split(weight @ np.concatenate([attended, query]) + bias, 2)
    return sigmoid(gate) * information


def aoa(w, config, regions, ids):
    a, size = projected(w, regions), config.hidden
    for n in range(config.refining):
        layer = f"refining.{n}"
        queries, keys, values = np.split(np.array([w.linear(f"{layer}.qkv_proj", x) for x in a]), 3, 1)
        weight, bias = w(f"{layer}.aoa_proj.weight"), w(f"{layer}.aoa_proj.bias")
        norm = w(f"{layer}.norm.weight"), w(f"{layer}.norm.bias")
        attended = [multi_head(query, keys, values, config.heads)[0] for query in queries]
        a = np.array(
            [
                layer_norm(x + attention_on_attention(weight, bias, context, query), *norm)
                for x, context, query in zip(a, attended, queries, strict=True)
            ]
        )
    keys, values = keys_and_values(w, a)
    gates_of_context, gates_of_h = np.split(w("hidden_proj.weight"), 2, 1)
    h = m = context = np.zeros(size)
    for token in ids:
        y = w("embedding.weight")[token]
        h, m = lstm(w.linear("input_proj", y) + gates_of_context @ (a.mean(0) + context) + gates_of_h @ h, m)
        query = w.linear("query_proj", h)
        attended, alpha = multi_head(query, keys, values, config.heads)
        context = attention_on_attention(w("aoa_proj.weight"), w("aoa_bias"), attended, query)
        yield w.linear("vocab_projection", context), alpha
