"""The meshed-memory Transformer against its equations written plainly."""

import pytest
import torch

from captioning.generation import BeamConfig, GreedyConfig, search
from captioning.models.decoders import MeshedMemoryConfig, build
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens
from tests.helpers.plain_transformer import attention, linear, norm, sinusoid

D, V, N, T = 5, 17, 3, 4
CONFIG = MeshedMemoryConfig(
    hidden=10, feed_forward=7, heads=5, layers=2, encoder_layers=3, slots=4, dropout=0.0
)


def make():
    torch.manual_seed(0)
    decoder = build(CONFIG, channels=D, vocabulary_size=V).double().eval()
    for parameter in decoder.parameters():  # away from ones and zeros, which hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def plain(decoder, regions, words):
    """Logits (T, V) and attention (T, N) of one caption of one image."""
    w, size, heads = dict(decoder.named_parameters()), CONFIG.hidden, CONFIG.heads

    def feed(layer, x):  # eq. 4
        return linear(w, f"{layer}.fc2", linear(w, f"{layer}.fc1", x).clamp(min=0))

    def thirds(name, x):
        return linear(w, name, x).split(size)

    seen = [norm(w, "project.3", linear(w, "project.0", region).clamp(min=0)) for region in regions]
    levels = []
    for i in range(CONFIG.encoder_layers):
        layer = f"encoder.{i}"
        qkv = [thirds(f"{layer}.qkv_proj", x) for x in seen]
        keys = [k for _, k, _ in qkv] + list(w[f"{layer}.slot_keys"])
        values = [v for _, _, v in qkv] + list(w[f"{layer}.slot_values"])
        after = []
        for x, (q, _, _) in zip(seen, qkv, strict=True):
            remembered = linear(w, f"{layer}.out_proj", attention(q, keys, values, heads)[0])  # eq. 3
            z = norm(w, f"{layer}.self_norm", x + remembered)
            after.append(norm(w, f"{layer}.ff_norm", z + feed(layer, z)))  # eq. 5
        seen = after
        levels.append(seen)
    ys = [w["embedding.weight"][word] * size**0.5 + sinusoid(t, size) for t, word in enumerate(words)]
    shown = torch.zeros(len(words), len(regions), dtype=torch.float64)
    for number in range(CONFIG.layers):
        layer = f"layers.{number}"
        qkv = [thirds(f"{layer}.self_qkv_proj", y) for y in ys]
        after = []
        for t, y in enumerate(ys):
            keys, values = [k for _, k, _ in qkv[: t + 1]], [v for _, _, v in qkv[: t + 1]]
            said = linear(w, f"{layer}.self_out_proj", attention(qkv[t][0], keys, values, heads)[0])
            y = norm(w, f"{layer}.self_norm", y + said)
            mesh = 0
            for i, level in enumerate(levels):
                pairs = [linear(w, f"{layer}.cross_kv_proj", x) for x in level]
                mixed, weights = attention(
                    linear(w, f"{layer}.cross_query_proj", y),
                    [pair[:size] for pair in pairs],
                    [pair[size:] for pair in pairs],
                    heads,
                )
                c = linear(w, f"{layer}.cross_out_proj", mixed)  # eq. 7
                alpha = 1 / (1 + torch.exp(-linear(w, f"{layer}.alpha_proj.{i}", torch.cat([y, c]))))  # eq. 8
                mesh = mesh + alpha * c  # eq. 6
                shown[t] += weights.mean(0) / (CONFIG.layers * CONFIG.encoder_layers)
            z = norm(w, f"{layer}.cross_norm", y + mesh)
            after.append(norm(w, f"{layer}.ff_norm", z + feed(layer, z)))  # eq. 9
        ys = after
    return torch.stack([linear(w, "vocab_projection", y) for y in ys]), shown


@torch.no_grad()
def test_it_computes_its_equations():
    decoder = make()
    regions, words = torch.randn(2, N, D).double(), torch.randint(V, (2, 1, T))
    out = decoder(words, decoder.encode_memory(Features(regions)))
    for b in range(2):
        logits, shown = plain(decoder, regions[b], words[b, 0])
        torch.testing.assert_close(decoder.logits(out.hidden[b, 0]), logits)
        torch.testing.assert_close(out.attention[b, 0], shown)


@torch.no_grad()
def test_what_a_search_claims_is_what_reading_its_words_gives():
    decoder = make()
    memory = decoder.encode_memory(Features(torch.randn(2, N, D).double()))
    ways = [GreedyConfig(max_length=7), BeamConfig(width=1, max_length=7), BeamConfig(width=5, max_length=7)]
    greedy, one, five = (search(decoder, memory, way, special=SpecialTokens(1, 2, (0, 1, 3))) for way in ways)
    assert torch.equal(greedy.ids, one.ids)
    words = torch.cat([torch.full((2, 1, 1), 1), five.ids[..., :-1]], -1)
    logprob = decoder.logits(decoder(words, memory).hidden).log_softmax(-1)
    inside = torch.arange(words.shape[-1]) < five.lengths[..., None]
    each = logprob.gather(-1, five.ids[..., None])[..., 0]
    torch.testing.assert_close(five.logprob, (each * inside).sum(-1))


def test_heads_must_divide_the_size():
    with pytest.raises(ValueError, match="hidden must be a multiple of heads, got 10 and 3"):
        MeshedMemoryConfig(hidden=10, heads=3)
