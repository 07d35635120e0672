"""The Transformer against its equations written plainly, its positions, and the cache that hypotheses share."""

import dataclasses
import itertools

import pytest
import torch

from captioning.generation import BeamConfig, GreedyConfig, search
from captioning.models.decoders import TransformerConfig, build, reorder_state
from captioning.ops.kv_cache import KVCache
from captioning.ops.positions import apply_rope, sinusoids
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens
from tests.helpers.plain_transformer import attention, linear, norm, sinusoid, turned

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


def part(w, name, x, post, inside):
    """x + inside(x), with the norm before or behind."""
    return norm(w, name, x + inside(x)) if post else x + inside(norm(w, name, x))


def plain(decoder, regions, words):
    """Logits (T, V) and attention (T, N) of one caption of one image."""
    config, w = decoder.config, dict(decoder.named_parameters())
    post, heads, size = config.norm == "post", config.heads, config.hidden

    def feed(layer):
        return lambda x: linear(w, f"{layer}.fc2", gelu(linear(w, f"{layer}.fc1", x)))

    def all_with(layer, qkv, inside, xs):
        """Self-attention of every x to the `inside` of those that it may see."""
        asked = xs if post else [norm(w, f"{layer}.self_norm", x) for x in xs]
        outs = inside([linear(w, f"{layer}.{qkv}", x) for x in asked])
        sums = [x + out for x, out in zip(xs, outs, strict=True)]
        return [norm(w, f"{layer}.self_norm", x) for x in sums] if post else sums

    def over_regions(layer):
        def inside(qkv):
            keys, values = [each[size : 2 * size] for each in qkv], [each[2 * size :] for each in qkv]
            return [
                linear(w, f"{layer}.out_proj", attention(each[:size], keys, values, heads)[0]) for each in qkv
            ]

        return inside

    def over_words(layer):
        def inside(qkv):
            queries, keys, values = ([each[i * size : (i + 1) * size] for each in qkv] for i in range(3))
            if config.positions == "rotary":
                queries, keys = (
                    [turned(x, t, heads) for t, x in enumerate(each)] for each in (queries, keys)
                )
            return [
                linear(
                    w,
                    f"{layer}.self_out_proj",
                    attention(query, keys[: t + 1], values[: t + 1], heads)[0],
                )
                for t, query in enumerate(queries)
            ]

        return inside

    seen = [norm(w, "project.1", linear(w, "project.0", region)) for region in regions]
    for number in range(config.encoder_layers):
        layer = f"encoder.{number}"
        seen = all_with(layer, "qkv_proj", over_regions(layer), seen)
        seen = [part(w, f"{layer}.ff_norm", x, post, feed(layer)) for x in seen]
    if not post:
        seen = [norm(w, "encoder_norm", x) for x in seen]
    xs = []
    for t, word in enumerate(words):
        x = w["embedding.weight"][word] * size**0.5
        if config.positions == "learned":
            x = x + w["position_embedding.weight"][t]
        elif config.positions == "sinusoidal":
            x = x + sinusoid(t, size)
        xs.append(x)
    shown = torch.zeros(len(words), len(regions), dtype=torch.float64)
    for number in range(config.layers):
        layer = f"layers.{number}"
        xs = all_with(layer, "self_qkv_proj", over_words(layer), xs)
        regional = [linear(w, f"{layer}.cross_kv_proj", x) for x in seen]
        keys, values = [x[:size] for x in regional], [x[size:] for x in regional]
        for t in range(len(words)):

            def look(x, layer=layer, keys=keys, values=values, t=t):
                mixed, weights = attention(linear(w, f"{layer}.cross_query_proj", x), keys, values, heads)
                shown[t] += weights.mean(0) / config.layers
                return linear(w, f"{layer}.cross_out_proj", mixed)

            xs[t] = part(w, f"{layer}.cross_norm", xs[t], post, look)
            xs[t] = part(w, f"{layer}.ff_norm", xs[t], post, feed(layer))
    if not post:
        xs = [norm(w, "norm", x) for x in xs]
    return torch.stack([linear(w, "vocab_projection", x) for x in xs]), shown


@pytest.mark.parametrize(("norm_", "positions"), VARIANTS)
@torch.no_grad()
def test_it_computes_its_equations(norm_, positions):
    decoder = make(dataclasses.replace(CONFIG, norm=norm_, positions=positions))
    regions, words = torch.randn(2, N, D).double(), torch.randint(V, (2, 1, T))
    out = decoder(words, decoder.encode_memory(Features(regions)))
    for b in range(2):
        logits, shown = plain(decoder, regions[b], words[b, 0])
        torch.testing.assert_close(decoder.logits(out.hidden[b, 0]), logits)
        torch.testing.assert_close(out.attention[b, 0], shown)


@pytest.mark.parametrize(("norm_", "positions"), VARIANTS)
def test_greedy_is_a_beam_of_one_and_its_words_read_back_alike(norm_, positions):
    decoder = make(dataclasses.replace(CONFIG, norm=norm_, positions=positions))
    with torch.no_grad():
        memory = decoder.encode_memory(Features(torch.randn(2, N, D).double()))
        ways = [
            GreedyConfig(max_length=7),
            BeamConfig(width=1, max_length=7),
            BeamConfig(width=5, max_length=7),
        ]
        greedy, one, five = (
            search(decoder, memory, way, special=SpecialTokens(1, 2, (0, 1, 3))) for way in ways
        )
        assert torch.equal(greedy.ids, one.ids)
        words = torch.cat([torch.full((2, 1, 1), 1), five.ids[..., :-1]], -1)
        logprob = decoder.logits(decoder(words, memory).hidden).log_softmax(-1)
        each = logprob.gather(-1, five.ids[..., None])[..., 0]
        inside = torch.arange(words.shape[-1]) < five.lengths[..., None]
        torch.testing.assert_close(five.logprob, (each * inside).sum(-1))


def test_a_tied_matrix_is_one():
    decoder = make(dataclasses.replace(CONFIG, tied=True))
    assert decoder.vocab_projection.weight is decoder.embedding.weight


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_computed_positions_know_no_limit(positions):
    config = dataclasses.replace(CONFIG, positions=positions)
    assert config.max_positions is None and CONFIG.max_positions == 13
    decoder = make(config)
    words = torch.randint(V, (1, 1, 29))
    assert (
        decoder(words, decoder.encode_memory(Features(torch.randn(1, N, D).double()))).hidden.isfinite().all()
    )


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


def test_sinusoids_are_those_on_paper():
    expected = torch.stack([sinusoid(place, 14) for place in range(3, 8)])
    torch.testing.assert_close(sinusoids(torch.arange(3, 8), 14), expected)


def test_turned_queries_and_keys_know_their_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 12, dtype=torch.float64)

    def product(at, other):
        turned_ = (apply_rope(x, torch.tensor([p]), heads=3) for x, p in ((query, at), (key, other)))
        first, second = turned_
        return (first * second).unflatten(-1, (3, 4)).sum(-1)

    torch.testing.assert_close(product(5, 2), product(1003, 1000))
    assert (product(5, 2) - product(5, 3)).abs().min() > 1e-4
    torch.testing.assert_close(apply_rope(query, torch.tensor([7]), heads=3)[0], turned(query[0], 7, 3))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_cache_holds_what_a_plain_one_would_and_no_more(seed, gradients):
    generator = torch.Generator().manual_seed(seed)
    images, size = 3, 2
    cache = KVCache.empty(torch.zeros(0), images=images, num_sequences=1, size=size, layers=2)
    plain_cache = torch.zeros(images, 1, 0, size)
    width = 1
    for step in range(11):
        with torch.set_grad_enabled(gradients):
            cache, allowed = cache.extend()
        new = torch.randn(images, width, size, generator=generator)
        with torch.set_grad_enabled(gradients):
            seen = [cache.write(n, new * (n + 1), -new * (n + 1)) for n in range(2)]
        assert (
            allowed.shape == (images, 1, width, cache.num_tokens) and seen[1][0].shape[1] == cache.num_tokens
        )
        assert (allowed.sum(-1) == step + 1).all()
        plain_cache = torch.cat([plain_cache, new[:, :, None]], 2)
        wider = 5 if step else 4
        parents = torch.randint(width, (images, wider), generator=generator)
        cache, plain_cache, width = reorder_state(cache, parents), reorder_state(plain_cache, parents), wider
        for n, held in enumerate(cache.buffer.layers, 1):
            for b in range(images):
                torch.testing.assert_close(held[0, b, cache.token_index[b]], plain_cache[b] * n)
                torch.testing.assert_close(held[1, b, cache.token_index[b]], -plain_cache[b] * n)
        assert cache.num_tokens == max(len(each.unique()) for each in cache.token_index)


def test_a_beam_gets_its_room_as_it_opens_and_its_words_stay_there():
    with torch.no_grad():
        cache, _ = KVCache.empty(torch.zeros(0), images=2, num_sequences=1, size=4, layers=2).extend()
        cache = reorder_state(cache, torch.zeros(2, 3, dtype=torch.int64))
        places = set()
        for _ in range(20):  # no sequence dies
            cache, _ = cache.extend()
            places.add(cache.buffer.layers[0].data_ptr())
            cache = reorder_state(cache, torch.arange(3).expand(2, 3))
    assert cache.num_tokens == 1 + 20 * 3 and len(places) == 1


def test_a_carry_may_be_gone_on_from_twice():
    decoder = make(CONFIG)
    with torch.no_grad():
        memory = decoder.encode_memory(Features(torch.randn(2, N, D).double()))
        words = torch.randint(V, (2, 3, 2))
        _, state = decoder.step(words[..., 0], decoder.init_state(memory, 3), memory)
        first, _ = decoder.step(words[..., 1], state, memory)
        decoder.step((words[..., 1] + 1) % V, state, memory)
        again, _ = decoder.step(words[..., 1], state, memory)
    assert torch.equal(first.hidden, again.hidden)
    torch.testing.assert_close(first.hidden, decoder(words, memory).hidden[:, :, 1])
