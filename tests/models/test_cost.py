"""The cost of decoders beside formulas on paper and beside real tensors."""

import dataclasses
import typing
from dataclasses import replace

import pytest
import torch

from captioning.errors import UserError
from captioning.models.cost import (
    WIDTHS,
    decoding_flops,
    flops_per_caption,
    parameters,
    solve_width,
    state_bytes,
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
CONFIGS = [  # small, because some tests fill the weights
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
    assert counted == sum(parameter.numel() for parameter in build(config, **SIZES).parameters())


def test_a_tied_matrix_is_counted_once():
    untied, tied = (TransformerConfig(hidden=22, heads=11, layers=1, tied=tied) for tied in (False, True))
    assert parameters(untied, **SIZES) - parameters(tied, **SIZES) == V * 22


def by_hand(config):
    """FLOPs of a forward pass over K captions of T words of one image: (all, those of products with the features)."""
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
    # backward: a product for either factor; none for the features, which have no gradient
    trained = 3 * forward - entry
    if config.kind == "soft_attention_lstm":
        # of the expected region only the attention has a gradient; of the scores' product only the weight's gradient is
        # a matrix product, that of the tanh is elementwise
        trained -= 2 * K * T * N * (D + config.attention_size)
    assert flops_per_caption(config, **shape) == round(trained / K)


@every_kind
def test_training_costs_more_than_the_forward_pass_and_a_beam_more_than_greedy(config):
    shape = {**SIZES, "regions": N, "words": T}
    forward, trained = (flops_per_caption(config, **shape, train=train) for train in (False, True))
    assert 0 < forward < trained < 4 * forward
    assert flops_per_caption(config, **shape, captions=1) > trained
    one, five = (decoding_flops(config, **shape, width=width) for width in (1, 5))
    assert one < five < 5 * one


@every_kind
def test_state_bytes_are_those_of_the_tensors_if_all_hypotheses_go_on(config):
    decoder = build(config, **SIZES).eval()
    with torch.no_grad():
        memory = decoder.encode_memory(Features(torch.randn(1, N, D)))
        state = decoder.init_state(memory, 1)
        for t in range(T):
            active = K if t else 1
            _, state = decoder.step(torch.zeros(1, active, dtype=torch.int64), state, memory)
            state = reorder_state(state, (torch.arange(K) % active)[None])
    expected = sum(tensor.nbytes for tensor in tensors_of(state))
    assert state_bytes(config, **SIZES, regions=N, words=T, width=K) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_every_integer_of_a_config_is_a_width_or_known_not_to_be_one(kind):
    others = {"heads", "layers", "encoder_layers", "refining", "max_length", "slots"}
    hints = typing.get_type_hints(kind)
    integers = {field.name for field in dataclasses.fields(kind) if hints[field.name] in (int, int | None)}
    assert integers <= others | set(WIDTHS)


@every_kind
def test_widths_are_solved_for_parameters(config):
    def measure(candidate):
        return parameters(candidate, channels=211, vocabulary_size=1009)

    solved = solve_width(config, 800_000, measure)
    assert abs(measure(solved) / 800_000 - 1) < 0.03
    others = {field.name for field in dataclasses.fields(config)} - set(WIDTHS)
    assert all(getattr(solved, name) == getattr(config, name) for name in others)


def test_proportions_are_kept():
    config = SoftAttentionLSTMConfig(embedding=101, hidden=307, attention_size=211, cell="gru")
    solved = solve_width(config, 1_000_000, lambda candidate: parameters(candidate, **SIZES))
    for name in ("embedding", "attention_size"):
        assert getattr(solved, name) / solved.hidden == pytest.approx(
            getattr(config, name) / config.hidden, rel=0.02
        )
    assert solved.features is None


def test_widths_are_solved_for_flops():
    def measure(config):
        return flops_per_caption(config, channels=D, vocabulary_size=1009, regions=N, words=2)

    config = TransformerConfig(layers=1, hidden=32, feed_forward=128, heads=4)
    solved = solve_width(config, 3_000_000, measure)
    assert abs(measure(solved) / 3_000_000 - 1) < 0.01
    assert solved.hidden % (2 * solved.heads) == 0


def test_a_cost_that_no_width_has_is_refused():
    with pytest.raises(UserError, match="no width costs about 10;"):
        solve_width(SoftAttentionLSTMConfig(), 10, lambda config: parameters(config, **SIZES))
