"""The meshed-memory Transformer beside its equations written token by token."""

import pytest
import torch

from captioning.models.decoders import MeshedMemoryConfig, build
from captioning.tensors import Features
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


def feed_forward(weights, layer, x):  # eq. 4
    return linear(weights, f"{layer}.fc2", linear(weights, f"{layer}.fc1", x).clamp(min=0))


def qkv(weights, name, xs):
    return [linear(weights, name, x).split(CONFIG.hidden) for x in xs]


def encode_regions(weights, regions):
    """The outputs of all encoder layers."""
    xs = [norm(weights, "project.3", linear(weights, "project.0", x).clamp(min=0)) for x in regions]
    levels = []
    for number in range(CONFIG.encoder_layers):
        layer = f"encoder.{number}"
        parts = qkv(weights, f"{layer}.qkv_proj", xs)
        keys = [key for _, key, _ in parts] + list(2**0.5 * weights[f"{layer}.scaled_slot_keys"])  # d = 2
        values = [value for _, _, value in parts] + list(
            2.0 * weights[f"{layer}.scaled_slot_values"]
        )  # 4 slots
        outputs = []
        for x, (query, _, _) in zip(xs, parts, strict=True):
            attended, _ = attention(query, keys, values, CONFIG.heads)  # eq. 3
            z = norm(weights, f"{layer}.self_norm", x + linear(weights, f"{layer}.out_proj", attended))
            outputs.append(norm(weights, f"{layer}.ff_norm", z + feed_forward(weights, layer, z)))  # eq. 5
        xs = outputs
        levels.append(xs)
    return levels


def meshed_attention(weights, layer, y, levels):
    """M_mesh of one token (eqs. 6 to 8), and the attention (N,) of every level."""
    mesh, level_attention = 0, []
    for i, level in enumerate(levels):
        pairs = [linear(weights, f"{layer}.cross_kv_proj", x).split(CONFIG.hidden) for x in level]
        query = linear(weights, f"{layer}.cross_query_proj", y)
        attended, heads_attention = attention(query, *zip(*pairs, strict=True), CONFIG.heads)
        c = linear(weights, f"{layer}.cross_out_proj", attended)  # eq. 7
        alpha = torch.sigmoid(linear(weights, f"{layer}.alpha_proj.{i}", torch.cat([y, c])))  # eq. 8
        mesh = mesh + alpha * c  # eq. 6
        level_attention.append(heads_attention.mean(0))
    return mesh, level_attention


def plain(decoder, regions, ids):
    """Logits (T, V) and attention (T, N) of one caption of one image."""
    weights = dict(decoder.named_parameters())
    levels = encode_regions(weights, regions)
    ys = [
        weights["embedding.weight"][id_] * CONFIG.hidden**0.5 + sinusoid(t, CONFIG.hidden)
        for t, id_ in enumerate(ids)
    ]
    mean_attention = torch.zeros(len(ids), len(regions), dtype=torch.float64)
    for number in range(CONFIG.layers):
        layer = f"layers.{number}"
        parts, outputs = qkv(weights, f"{layer}.self_qkv_proj", ys), []
        for t, y in enumerate(ys):
            keys, values = [key for _, key, _ in parts[: t + 1]], [value for _, _, value in parts[: t + 1]]
            attended, _ = attention(parts[t][0], keys, values, CONFIG.heads)
            y = norm(weights, f"{layer}.self_norm", y + linear(weights, f"{layer}.self_out_proj", attended))
            mesh, level_attention = meshed_attention(weights, layer, y, levels)
            mean_attention[t] += sum(level_attention) / (CONFIG.layers * CONFIG.encoder_layers)
            z = norm(weights, f"{layer}.cross_norm", y + mesh)
            outputs.append(norm(weights, f"{layer}.ff_norm", z + feed_forward(weights, layer, z)))  # eq. 9
        ys = outputs
    return torch.stack([linear(weights, "vocab_projection", y) for y in ys]), mean_attention


@torch.no_grad()
def test_it_computes_its_equations():
    decoder = make()
    regions, ids = torch.randn(2, N, D).double(), torch.randint(V, (2, 1, T))
    output = decoder(ids, decoder.encode_memory(Features(regions)))
    for image in range(2):
        logits, mean_attention = plain(decoder, regions[image], ids[image, 0])
        torch.testing.assert_close(decoder.logits(output.hidden[image, 0]), logits)
        torch.testing.assert_close(output.attention[image, 0], mean_attention)


def test_heads_must_divide_the_size():
    with pytest.raises(ValueError, match="hidden must be a multiple of heads, got 10 and 3"):
        MeshedMemoryConfig(hidden=10, heads=3)


def test_slots_begin_and_learn_as_in_the_authors_code():
    """Standard deviations of 1 / d and 1 / slots as stored; Adam's first step moves M_k by sqrt(d) learning rates."""
    config = MeshedMemoryConfig(hidden=96, heads=6, layers=1, encoder_layers=1, slots=25, dropout=0.0)
    torch.manual_seed(0)
    decoder = build(config, channels=D, vocabulary_size=V)
    layer, regions = decoder.encoder[0], torch.randn(3, 7, 96)
    assert layer.scaled_slot_keys.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert layer.scaled_slot_values.std().item() == pytest.approx(1 / 25, rel=0.05)
    concatenated = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "captioning.models.decoders.meshed_memory.multi_head",
            lambda query, keys, values, **_: concatenated.append((keys[0, 7:], values[0, 7:])) or query,
        )
        layer(regions, None)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        (concatenated[0][0].sum() + concatenated[0][1].sum()).backward()
        optimizer.step()
        layer(regions, None)
    for part, scale in enumerate((4.0, 5.0)):
        moved = concatenated[0][part] - concatenated[1][part]
        torch.testing.assert_close(moved, torch.full_like(moved, scale * 1e-3), rtol=1e-3, atol=1e-6)
