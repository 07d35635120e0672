"""The Transformer beside its equations written token by token."""

import dataclasses
import itertools

import pytest
import torch

from captioning.models.decoders import TransformerConfig, build
from captioning.tensors import Features
from tests.helpers.decoders import check_search
from tests.helpers.plain_transformer import attention, linear, norm, rotated, sinusoid

D, V, N, T = 5, 17, 3, 4
CONFIG = TransformerConfig(
    hidden=12, feed_forward=7, heads=3, layers=2, encoder_layers=1, max_length=13, dropout=0.0
)
VARIANTS = list(itertools.product(("pre", "post"), ("learned", "sinusoidal", "rotary")))


def make(config, seed=0):
    torch.manual_seed(seed)
    decoder = build(config, channels=D, vocabulary_size=V).double().eval()
    for parameter in decoder.parameters():  # away from ones and zeros, which hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def gelu(x):
    return x * torch.distributions.Normal(0, 1).cdf(x)


def residual(weights, name, x, post, sublayer):
    """x + sublayer(x), with the norm before or after."""
    return norm(weights, name, x + sublayer(x)) if post else x + sublayer(norm(weights, name, x))


def feed_forward(weights, layer):
    return lambda x: linear(weights, f"{layer}.fc2", gelu(linear(weights, f"{layer}.fc1", x)))


def self_attention(weights, config, layer, xs, *, over_tokens):
    """Every x after self-attention to all of `xs` (regions), or to those not after it (tokens)."""
    size, post = config.hidden, config.norm == "post"
    qkv_proj, out_proj = ("self_qkv_proj", "self_out_proj") if over_tokens else ("qkv_proj", "out_proj")
    inputs = xs if post else [norm(weights, f"{layer}.self_norm", x) for x in xs]
    qkv = [linear(weights, f"{layer}.{qkv_proj}", x).split(size) for x in inputs]
    queries, keys, values = ([part[i] for part in qkv] for i in range(3))
    if over_tokens and config.positions == "rotary":
        queries, keys = (
            [rotated(x, t, config.heads) for t, x in enumerate(part)] for part in (queries, keys)
        )
    sums = []
    for t, (x, query) in enumerate(zip(xs, queries, strict=True)):
        end = t + 1 if over_tokens else len(xs)
        attended, _ = attention(query, keys[:end], values[:end], config.heads)
        sums.append(x + linear(weights, f"{layer}.{out_proj}", attended))
    return [norm(weights, f"{layer}.self_norm", x) for x in sums] if post else sums


def encode_regions(weights, config, regions):
    post = config.norm == "post"
    xs = [norm(weights, "project.1", linear(weights, "project.0", region)) for region in regions]
    for number in range(config.encoder_layers):
        layer = f"encoder.{number}"
        xs = self_attention(weights, config, layer, xs, over_tokens=False)
        xs = [residual(weights, f"{layer}.ff_norm", x, post, feed_forward(weights, layer)) for x in xs]
    return xs if post else [norm(weights, "encoder_norm", x) for x in xs]


def embed(weights, config, ids):
    xs = []
    for t, id_ in enumerate(ids):
        x = weights["embedding.weight"][id_] * config.hidden**0.5
        if config.positions == "learned":
            x = x + weights["position_embedding.weight"][t]
        elif config.positions == "sinusoidal":
            x = x + sinusoid(t, config.hidden)
        xs.append(x)
    return xs


def plain(decoder, regions, ids):
    """Logits (T, V) and attention (T, N) of one caption of one image."""
    config, weights = decoder.config, dict(decoder.named_parameters())
    post, size = config.norm == "post", config.hidden
    encoded, xs = encode_regions(weights, config, regions), embed(weights, config, ids)
    mean_attention = torch.zeros(len(ids), len(regions), dtype=torch.float64)
    for number in range(config.layers):
        layer = f"layers.{number}"
        xs = self_attention(weights, config, layer, xs, over_tokens=True)
        keys, values = zip(
            *(linear(weights, f"{layer}.cross_kv_proj", x).split(size) for x in encoded), strict=True
        )
        for t in range(len(ids)):

            def cross_attention(x, layer=layer, keys=keys, values=values, t=t):
                query = linear(weights, f"{layer}.cross_query_proj", x)
                attended, heads_attention = attention(query, keys, values, config.heads)
                mean_attention[t] += heads_attention.mean(0) / config.layers
                return linear(weights, f"{layer}.cross_out_proj", attended)

            xs[t] = residual(weights, f"{layer}.cross_norm", xs[t], post, cross_attention)
            xs[t] = residual(weights, f"{layer}.ff_norm", xs[t], post, feed_forward(weights, layer))
    if not post:
        xs = [norm(weights, "norm", x) for x in xs]
    return torch.stack([linear(weights, "vocab_projection", x) for x in xs]), mean_attention


@pytest.mark.parametrize(("norm_", "positions"), VARIANTS)
@torch.no_grad()
def test_it_computes_its_equations(norm_, positions):
    decoder = make(dataclasses.replace(CONFIG, norm=norm_, positions=positions))
    regions, ids = torch.randn(2, N, D).double(), torch.randint(V, (2, 1, T))
    output = decoder(ids, decoder.encode_memory(Features(regions)))
    for image in range(2):
        logits, mean_attention = plain(decoder, regions[image], ids[image, 0])
        torch.testing.assert_close(decoder.logits(output.hidden[image, 0]), logits)
        torch.testing.assert_close(output.attention[image, 0], mean_attention)


@pytest.mark.parametrize(("norm_", "positions"), VARIANTS)
@torch.no_grad()
def test_searches_agree_with_forward(norm_, positions):
    decoder = make(dataclasses.replace(CONFIG, norm=norm_, positions=positions))
    check_search(decoder, decoder.encode_memory(Features(torch.randn(2, N, D).double())))


def test_tied_matrices_are_one():
    decoder = make(dataclasses.replace(CONFIG, tied=True))
    assert decoder.vocab_projection.weight is decoder.embedding.weight


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_computed_positions_have_no_limit(positions):
    config = dataclasses.replace(CONFIG, positions=positions)
    assert config.max_positions is None and CONFIG.max_positions == 13
    decoder = make(config)
    memory = decoder.encode_memory(Features(torch.randn(1, N, D).double()))
    assert decoder(torch.randint(V, (1, 1, 29)), memory).hidden.isfinite().all()


def test_a_caption_longer_than_the_learned_positions_is_refused():
    decoder = make(CONFIG)
    memory = decoder.encode_memory(Features(torch.randn(1, N, D).double()))
    with pytest.raises(ValueError, match=r"14 words, but decoder\.max_length is 13"):
        decoder(torch.randint(V, (1, 1, 14)), memory)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 5}, "hidden must be a multiple of heads, got 12 and 5"),
        ({"hidden": 9, "positions": "sinusoidal"}, "hidden must be even for sinusoidal positions, got 9"),
        ({"heads": 4, "positions": "rotary"}, "hidden / heads must be even for rotary positions"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **sizes)


def test_a_state_can_be_continued_twice():
    decoder = make(CONFIG)
    with torch.no_grad():
        memory = decoder.encode_memory(Features(torch.randn(2, N, D).double()))
        ids = torch.randint(V, (2, 3, 2))
        _, state = decoder.step(ids[..., 0], decoder.init_state(memory, 3), memory)
        first, _ = decoder.step(ids[..., 1], state, memory)
        decoder.step((ids[..., 1] + 1) % V, state, memory)
        second, _ = decoder.step(ids[..., 1], state, memory)
    assert torch.equal(first.hidden, second.hidden)
    torch.testing.assert_close(first.hidden, decoder(ids, memory).hidden[:, :, 1])
