"""Every decoder keeps the protocol: forward equals unrolled steps, regions that are not there do not matter."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import GreedyConfig, search
from captioning.models.decoders import (
    AdaptiveAttentionConfig,
    AoAConfig,
    Att2inConfig,
    HardAttentionLSTMConfig,
    MeshedMemoryConfig,
    ShowTellConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    UpDownConfig,
    build,
    reorder_state,
    unroll,
)
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens
from captioning.training.losses import caption_logprobs, cross_entropy, hard_attention

CONFIGS = {
    "soft_attention_lstm": SoftAttentionLSTMConfig(embedding=7, hidden=13, attention_size=17, dropout=0.0),
    "soft_attention_lstm, projected": SoftAttentionLSTMConfig(
        embedding=7, hidden=13, attention_size=17, features=11, dropout=0.0
    ),
    "soft_attention_lstm, gru, dot": SoftAttentionLSTMConfig(
        embedding=7, hidden=13, cell="gru", attention="dot", attention_size=17, dropout=0.0
    ),
    "soft_attention_lstm, rnn, multi_head": SoftAttentionLSTMConfig(
        embedding=7, hidden=13, cell="rnn", attention="multi_head", attention_size=15, heads=3, dropout=0.0
    ),
    "show_tell": ShowTellConfig(embedding=7, hidden=13, dropout=0.0),
    "show_tell, gru": ShowTellConfig(embedding=7, hidden=13, cell="gru", dropout=0.0),
    "hard_attention_lstm": HardAttentionLSTMConfig(embedding=7, hidden=13, attention_size=17, dropout=0.0),
    "adaptive_attention": AdaptiveAttentionConfig(embedding=7, hidden=13, attention_size=17, dropout=0.0),
    "att2in": Att2inConfig(embedding=7, hidden=13, attention_size=17, features=11, dropout=0.0),
    "aoa": AoAConfig(embedding=7, hidden=15, heads=3, refining=0, dropout=0.0, gate_dropout=0.0),
    "aoa, refined": AoAConfig(embedding=7, hidden=15, heads=5, refining=2, dropout=0.0, gate_dropout=0.0),
    "up_down": UpDownConfig(embedding=7, hidden=13, attention_size=17, dropout=0.0),
    "up_down, projected": UpDownConfig(embedding=7, hidden=13, attention_size=5, features=11, dropout=0.0),
    "meshed_memory": MeshedMemoryConfig(
        hidden=14, feed_forward=23, heads=7, layers=2, encoder_layers=3, slots=5, dropout=0.0
    ),
    "transformer": TransformerConfig(hidden=14, feed_forward=23, heads=2, layers=3, dropout=0.0),
    "transformer, encoder, tied": TransformerConfig(
        hidden=14, feed_forward=23, heads=7, layers=1, encoder_layers=2, tied=True, dropout=0.0
    ),
    "transformer, post, sinusoidal": TransformerConfig(
        hidden=14,
        feed_forward=23,
        heads=7,
        layers=2,
        encoder_layers=1,
        norm="post",
        positions="sinusoidal",
        dropout=0.0,
    ),
    "transformer, rotary": TransformerConfig(
        hidden=12, feed_forward=23, heads=3, layers=2, positions="rotary", dropout=0.0
    ),
}
CHANNELS, VOCABULARY = 19, 29


def make(name, *, seed=0, **changes):
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIGS[name], **changes)
    decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).double().eval()
    for parameter in decoder.parameters():  # away from initialisations at zero, which hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return decoder


def scene(images, sequences, regions, length, *, seed=0, masked=False):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, regions, CHANNELS, generator=generator, dtype=torch.double)
    words = torch.randint(VOCABULARY, (images, sequences, length), generator=generator)
    valid = None
    if masked:
        valid = torch.rand(images, regions, generator=generator) < 0.6
        valid[:, 0] = True
    return Features(regions=features, valid=valid), words


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 3),
    sequences=st.integers(1, 5),
    regions=st.integers(1, 7),
    length=st.integers(1, 9),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forward_equals_unrolled_steps(name, images, sequences, regions, length, masked, seed):
    decoder = make(name, seed=seed)
    features, words = scene(images, sequences, regions, length, seed=seed, masked=masked)
    memory = decoder.encode_memory(features)
    whole, stepped = decoder(words, memory), unroll(decoder, words, memory)
    torch.testing.assert_close(whole.hidden, stepped.hidden)
    if name.startswith("show_tell"):
        assert whole.attention is None and stepped.attention is None
        return
    torch.testing.assert_close(whole.attention, stepped.attention)
    torch.testing.assert_close(
        whole.attention.sum(-1), torch.ones(images, sequences, length, dtype=torch.double)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_forward_equal_those_of_unrolled_steps(name):
    decoder = make(name).train()
    features, words = scene(2, 3, 5, 7)
    gradients = []
    for run in (decoder, lambda words, memory: unroll(decoder, words, memory)):
        decoder.zero_grad()
        torch.manual_seed(1)  # the regions that hard attention draws, and images of either way
        logits = decoder.logits(run(words, decoder.encode_memory(features)).hidden)
        torch.sin(logits).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in decoder.named_parameters()})
    for key, gradient in gradients[0].items():
        if key == "position_embedding.weight":
            gradient, gradients[1][key] = gradient[:7], gradients[1][key][:7]
        assert gradient is not None and gradient.abs().sum() > 0, f"no gradient reaches {key}"
        torch.testing.assert_close(gradient, gradients[1][key])


@pytest.mark.parametrize("name", CONFIGS)
def test_running_leaves_what_is_wanted_alone(name):
    decoder = make(name)
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    batch_sizes = (3, 3, 3, 2, 2, 1, 1)
    whole, cut = decoder(words, memory), decoder(words, memory, batch_sizes)
    for t, count in enumerate(batch_sizes):
        torch.testing.assert_close(cut.hidden[:, :count, t], whole.hidden[:, :count, t])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_region_that_is_not_valid_does_not_matter(name):
    decoder = make(name)
    features, words = scene(2, 3, 5, 7)
    padding = torch.full((2, 2, CHANNELS), 1e3, dtype=torch.double)
    padded = Features(
        regions=torch.cat([features.regions, padding], 1),
        valid=torch.tensor([[True] * 5 + [False] * 2]).expand(2, -1),
    )
    plain, masked = (decoder(words, decoder.encode_memory(each)).hidden for each in (features, padded))
    torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_word_does_not_see_later_words_nor_other_sequences(name):
    decoder = make(name)
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    changed = words.clone()
    changed[:, 1, 4] = (changed[:, 1, 4] + 1) % VOCABULARY
    difference = (
        (decoder(words, memory).hidden - decoder(changed, memory).hidden).abs().amax((0, 3))
    )  # (K, T)
    assert difference[1, 4:].min() > 0
    difference[1, 4:] = 0
    assert difference.max() == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_selecting_a_carry_goes_on_from_the_parents(name):
    decoder = make(name)
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    parents = torch.tensor([[2, 0, 0, 1], [1, 1, 2, 0]])
    state = decoder.init_state(memory, 3)
    for t in range(4):
        _, state = decoder.step(words[..., t], state, memory)
    chosen = torch.gather(words, 1, parents[..., None].expand(-1, -1, 7))
    out, _ = decoder.step(chosen[..., 4], reorder_state(state, parents), memory)
    torch.testing.assert_close(out.hidden, decoder(chosen, memory).hidden[:, :, 4])


@pytest.mark.parametrize(
    ("cell", "reference"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU), ("rnn", torch.nn.RNN)]
)
def test_cells_without_attention_equal_those_of_torch(cell, reference):
    decoder = make("soft_attention_lstm", cell=cell)
    size = decoder.config.hidden
    with torch.no_grad():
        decoder.context_proj.weight.zero_()
    other = reference(decoder.config.embedding, size, batch_first=True).double()
    with torch.no_grad():
        other.weight_ih_l0.copy_(decoder.input_proj.weight)
        other.bias_ih_l0.copy_(decoder.input_proj.bias)
        other.weight_hh_l0.copy_(decoder.hidden_proj.weight[: len(other.weight_hh_l0)])
        other.bias_hh_l0.zero_()
        if cell == "gru":
            other.bias_hh_l0[2 * size :] = decoder.cell.bias
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    state = tuple(part[:, 0].repeat_interleave(3, 0)[None] for part in memory.state)
    expected, _ = other(decoder.embedding(words).flatten(0, 1), state if cell == "lstm" else state[0])
    torch.testing.assert_close(decoder(words, memory).hidden[..., :size].flatten(0, 1), expected)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith(("transformer", "meshed"))])
def test_gates_tell_how_the_state_came_about(name):
    decoder = make(name)
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    state = decoder.init_state(memory, 3)
    before = None
    for word in words.unbind(2):
        step, state = decoder.step(word, state, memory)
        for layer, gates in enumerate(step.gates):
            cell = getattr(decoder.config, "cell", "lstm")
            if before is not None and cell == "lstm":
                kept = gates.forget * before[layer].cell + gates.input * gates.candidate
                torch.testing.assert_close(gates.cell, kept)
                torch.testing.assert_close(gates.hidden, gates.output * torch.tanh(gates.cell))
            if before is not None and cell == "gru":
                mixed = (1 - gates.update) * gates.candidate + gates.update * before[layer].hidden
                torch.testing.assert_close(gates.hidden, mixed)
                assert gates.reset.min() > 0 and gates.reset.max() < 1
            assert gates.hidden.shape == (2, 3, decoder.config.hidden)
            assert (gates.sentinel is not None) == (name == "adaptive_attention")
        assert len(step.gates) == (2 if name.startswith("up_down") else 1)
        before = step.gates


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if not name.startswith(("transformer", "meshed")) and "rnn" not in name]
)
def test_forget_bias_is_how_much_is_kept_as_training_begins(name):
    kept = {}
    for bias in (1.0, 6.0):
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIGS[name], forget_bias=bias)
        decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).eval()
        features, words = scene(2, 3, 5, 1)
        memory = decoder.encode_memory(Features(features.regions.float()))
        gates = decoder.step(words[..., 0], decoder.init_state(memory, 3), memory)[0].gates
        kept[bias] = [
            (each.update if each.forget is None else each.forget).logit().mean().item() for each in gates
        ]
    for low, high in zip(kept[1.0], kept[6.0], strict=True):
        assert low == pytest.approx(1, abs=0.4) and high == pytest.approx(6, abs=0.4)


def test_the_sentinel_is_the_share_of_what_is_remembered():
    """With all that regions show at zero, what is left of the mixture is the sentinel's share."""
    decoder = make("adaptive_attention")
    features, words = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    memory = memory._replace(regions=torch.zeros_like(memory.regions))
    state = decoder.init_state(memory, 3)
    with torch.no_grad():
        decoder.hidden_proj.weight[4 * 13 :] = 0
        decoder.input_proj.weight[4 * 13 :] = 0
        decoder.input_proj.bias[4 * 13 :] = 1e3  # the sentinel's gate stands open
        decoder.mean_proj.weight[4 * 13 :] = 0
    step, (hidden, cell) = decoder.step(words[..., 0], state, memory)
    sentinel = step.gates[0].sentinel
    assert sentinel.shape == (2, 3) and 0 < sentinel.min() < sentinel.max() < 1
    torch.testing.assert_close(step.hidden - hidden, sentinel[..., None] * torch.tanh(cell))


@pytest.mark.parametrize("name", CONFIGS)
def test_captions_of_a_few_images_are_learned(name):
    """Seven images, a caption each: after some steps greedy decoding says of each image what was taught."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIGS[name], dropout=0.0)
    decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY)
    features, words = scene(7, 1, 3, 5, seed=3)
    features, words = Features(features.regions.float()), words.clamp(min=4)
    words[..., 0], words[..., -1] = 1, 2
    optimizer = torch.optim.Adam(decoder.parameters(), 0.03)
    for _ in range(50):
        steps = decoder(words[..., :-1], decoder.encode_memory(features))
        logits, targets = decoder.logits(steps.hidden).flatten(0, 2), words[..., 1:].flatten()
        loss = cross_entropy(logits, targets, smoothing=0.0)
        if steps.sampled_regions is not None:
            counts = torch.ones_like(words[..., 1:], dtype=torch.bool)
            logprob = caption_logprobs(logits, targets, counts)
            loss = loss + hard_attention(steps.attention, steps.sampled_regions, logprob, counts)
        optimizer.zero_grad()
        (loss / 28).backward()
        optimizer.step()
    decoder.eval()
    with torch.no_grad():
        memory = decoder.encode_memory(features)
        found = search(decoder, memory, GreedyConfig(max_length=4), special=SpecialTokens(1, 2, (0, 1, 3)))
    assert torch.equal(found.ids, words[..., 1:])


def test_a_caption_beyond_the_positions_is_refused():
    decoder = make("transformer")
    features, words = scene(1, 1, 5, 65)
    with pytest.raises(ValueError, match=r"65 words, but decoder\.max_length is 64"):
        decoder(words, decoder.encode_memory(features))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_in_mixed_precision_is_near_that_in_float32(name, precision):
    """As on a GPU: under autocast."""
    decoder = make(name).float().train()
    features, words = scene(2, 3, 5, 7, masked=True)
    features = features._replace(regions=features.regions.float())

    def step(enabled):
        torch.manual_seed(0)  # of what a decoder draws
        decoder.zero_grad()
        with torch.autocast("cpu", dtype=precision, enabled=enabled):
            steps = decoder(words[..., :-1], decoder.encode_memory(features), (3, 3, 3, 2, 2, 1))
            logits = decoder.logits(steps.hidden).float()
            loss = cross_entropy(logits.flatten(0, 2), words[..., 1:].flatten(), smoothing=0.1)
        loss.backward()
        return loss.detach(), [each.grad.clone() for each in decoder.parameters() if each.grad is not None]

    whole, gradients = step(False)
    mixed, theirs = step(True)
    assert abs(mixed - whole) < 0.01 * whole
    assert len(gradients) == len(theirs)
    wanted, found = (torch.cat([each.flatten() for each in all_]) for all_ in (gradients, theirs))
    assert found.dtype == torch.float32 and (found - wanted).norm() < 0.05 * wanted.norm()
