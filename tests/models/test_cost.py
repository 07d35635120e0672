"""What decoders cost, against formulas on paper and against the real tensors."""

import dataclasses
import typing
from dataclasses import replace

import pytest
import torch

from captioning.errors import UserError
from captioning.models.cost import (
    WIDTHS,
    bytes_of_carry,
    flops_of_decoding,
    flops_per_caption,
    parameters,
    solve_width,
)
from captioning.models.decoders import (
    DecoderConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    build,
    reorder_state,
)
from captioning.models.decoders.base import tensors_of
from captioning.tensors import Features

KINDS = typing.get_args(typing.get_args(DecoderConfig)[0])
CONFIGS = [  # small: some of the weights are filled
    replace(kind(), **{name: 32 for name in WIDTHS if getattr(kind(), name, None)}) for kind in KINDS
]
every_kind = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
D, V, N, T, K = 13, 31, 7, 5, 3
SIZES = {"channels": D, "vocabulary_size": V}


@every_kind
def test_parameters_are_those_of_the_decoder(config):
    before = torch.get_rng_state()
    counted = parameters(config, **SIZES)
    assert torch.equal(before, torch.get_rng_state())
    assert counted == sum(each.numel() for each in build(config, **SIZES).parameters())


def test_a_tied_matrix_is_counted_once():
    loose, tied = (TransformerConfig(hidden=22, heads=11, layers=1, tied=tied) for tied in (False, True))
    assert parameters(loose, **SIZES) - parameters(tied, **SIZES) == V * 22


def by_hand(config):
    """Products of a forward pass over K captions of T words of one image: (all, those with the features)."""
    if config.kind == "transformer":
        h, f, layers = config.hidden, config.feed_forward, config.layers
        entry = N * D * h
        image = entry + layers * N * h * 2 * h
        word = layers * (3 * h * h + 2 * T * h + h * h + h * h + 2 * N * h + h * h + 2 * h * f) + h * V
        return 2 * (image + K * T * word), 2 * entry
    e, h, a = config.embedding, config.hidden, config.attention_size
    image = N * D * a + 2 * D * h
    step = e * 4 * h + h * (4 * h + a + 1) + N * a + N * D + D * 4 * h
    return 2 * (image + K * T * (step + (h + D + e) * e + e * V)), 2 * image


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(hidden=22, feed_forward=17, heads=11, layers=2, dropout=0.0),
        SoftAttentionLSTMConfig(embedding=11, hidden=19, attention_size=17),
    ],
    ids=lambda config: config.kind,
)
def test_flops_are_those_on_paper(config):
    forward, entry = by_hand(config)
    shape = {**SIZES, "regions": N, "words": T, "captions": K}
    assert flops_per_caption(config, **shape, train=False) == round(forward / K)
    # backward: a product for each factor; none for the features, which are given
    trained = 3 * forward - entry
    if config.kind == "soft_attention_lstm":
        # the expected region's gradient goes to its weights alone; that of the energies to their weight alone
        # is a product, that to what was bent is done element by element
        trained -= 2 * K * T * N * (D + config.attention_size)
    assert flops_per_caption(config, **shape) == round(trained / K)


@every_kind
def test_every_decoder_can_be_counted_and_is_dearer_to_train(config):
    shape = {**SIZES, "regions": N, "words": T}
    forward, trained = (flops_per_caption(config, **shape, train=train) for train in (False, True))
    assert 0 < forward < trained < 4 * forward
    assert flops_per_caption(config, **shape, captions=1) > trained
    one, five = (flops_of_decoding(config, **shape, width=width) for width in (1, 5))
    assert one < five < 5 * one


@every_kind
def test_bytes_of_carry_are_those_of_the_tensors_where_all_hypotheses_live_on(config):
    decoder = build(config, **SIZES).eval()
    with torch.no_grad():
        memory = decoder.encode_memory(Features(torch.randn(1, N, D)))
        state = decoder.init_state(memory, 1)
        for t in range(T):
            live = K if t else 1
            _, state = decoder.step(torch.zeros(1, live, dtype=torch.int64), state, memory)
            state = reorder_state(state, (torch.arange(K) % live)[None])
    held = sum(each.nbytes for each in tensors_of(state))
    assert bytes_of_carry(config, **SIZES, regions=N, words=T, width=K) == held


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_every_number_of_a_config_is_a_width_or_known_not_to_be_one(kind):
    others = {"heads", "layers", "encoder_layers", "refining", "max_length", "slots"}
    hints = typing.get_type_hints(kind)
    numbers = {each.name for each in dataclasses.fields(kind) if hints[each.name] in (int, int | None)}
    assert numbers <= others | set(WIDTHS)


@every_kind
def test_widths_are_solved_for_parameters(config):
    def measure(each):
        return parameters(each, channels=211, vocabulary_size=1009)

    found = solve_width(config, 800_000, measure)
    assert abs(measure(found) / 800_000 - 1) < 0.03
    same = {each.name for each in dataclasses.fields(config)} - set(WIDTHS)
    assert all(getattr(found, name) == getattr(config, name) for name in same)


def test_proportions_stay():
    config = SoftAttentionLSTMConfig(embedding=101, hidden=307, attention_size=211, cell="gru")
    found = solve_width(config, 1_000_000, lambda each: parameters(each, **SIZES))
    for name in ("embedding", "attention_size"):
        assert getattr(found, name) / found.hidden == pytest.approx(
            getattr(config, name) / config.hidden, rel=0.02
        )
    assert found.features is None


def test_widths_are_solved_for_flops():
    def measure(config):
        return flops_per_caption(config, channels=D, vocabulary_size=1009, regions=N, words=2)

    config = TransformerConfig(layers=1, hidden=32, feed_forward=128, heads=4)
    found = solve_width(config, 3_000_000, measure)
    assert abs(measure(found) / 3_000_000 - 1) < 0.01
    assert found.hidden % (2 * found.heads) == 0


def test_what_no_width_costs_is_refused():
    with pytest.raises(UserError, match="no width costs about 10;"):
        solve_width(SoftAttentionLSTMConfig(), 10, lambda config: parameters(config, **SIZES))
