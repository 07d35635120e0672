"""Gradient norms against finite differences, and the decay of a linear network against its known value."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captioning.errors import UserError
from captioning.inspection import gradients, gradients_report
from captioning.inspection.gradients import (
    VANISHED,
    Probe,
    build_untrained,
    comparable_configs,
    decay,
    loss_positions,
    norms,
    probe,
)
from captioning.inspection.gradients_figure import draw_gradients
from captioning.inspection.gradients_report import summarize
from captioning.models.decoders import (
    Decoder,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    UpDownConfig,
    build,
    unroll,
)
from captioning.tensors import Features, Gates, StepOutput

CHANNELS, VOCABULARY, END = 5, 23, 2
CAPTION = [1, 11, 4, 19, 7, 13, 8, END]  # T = 7, no word twice
CONFIGS = {
    "rnn": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=3, cell="rnn"),
    "gru": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=3, cell="gru"),
    "lstm": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=3),
    "up_down": UpDownConfig(embedding=7, hidden=11, attention_size=3),
    "transformer": TransformerConfig(hidden=6, feed_forward=13, heads=3, layers=2, max_length=17),
}


def make(config, *, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).double().eval()
        for parameter in decoder.parameters():  # away from where training begins: gradients that matter
            parameter.data += 0.3 * torch.randn_like(parameter)
    return decoder.requires_grad_(False)


def scene(images=1, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(images, 4, CHANNELS, generator=generator, dtype=torch.double))


def loss(decoder, memory, t, *, caption=CAPTION, change=None):
    """Loss of the t-th word, word by word through `step`; `change(t, carry)` may alter the state after a word."""
    state = decoder.init_state(memory, 1)
    for place, word in enumerate(caption[: t + 1]):
        step, state = decoder.step(torch.tensor([[word]]), state, memory)
        if change is not None:
            state = change(place, step, state)
    return -float(torch.log_softmax(decoder.logits(step.hidden)[0, 0], -1)[caption[t + 1]])


@pytest.mark.parametrize("kind", CONFIGS)
def test_norms_are_those_of_finite_differences(kind):
    """No word occurs twice, so that a nudge of its vector is a nudge of one place in the caption."""
    decoder = make(CONFIGS[kind])
    memory = decoder.encode_memory(scene())
    found = norms(decoder, memory, CAPTION, [2, 6])
    assert found.at == (2, 6) and found.inputs.shape == (2, 7)
    vectors, nudge = decoder.embedding.weight, 1e-5
    for j, t in enumerate(found.at):
        for place, word in enumerate(CAPTION[:-1]):
            slope = []
            for unit in range(vectors.shape[1]):
                sides = []
                for sign in (1, -1):
                    vectors[word, unit] += sign * nudge
                    sides.append(loss(decoder, memory, t))
                    vectors[word, unit] -= sign * nudge
                slope.append((sides[0] - sides[1]) / (2 * nudge))
            assert found.inputs[j, place] == pytest.approx(math.hypot(*slope), rel=1e-5, abs=1e-9)
            assert (found.inputs[j, place] > 1e-8) == (place <= t)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_state_norms_are_those_of_finite_differences(kind):
    """The state is nudged as it is handed on. A nudge of the cell changes what is shown of it as well."""
    decoder = make(CONFIGS[kind])
    memory = decoder.encode_memory(scene())
    t = 5
    found = norms(decoder, memory, CAPTION, [t])
    assert set(found.states) == ({"hidden", "cell"} if kind == "lstm" else {"hidden"})
    for name, values in found.states.items():
        assert values.shape == (1, 7) and values[0, t + 1 :].max() == 0
        for place in (1, 4):
            slope = []
            for unit in range(11):
                sides = []
                for sign in (1e-5, -1e-5):

                    def change(at, step, state, place=place, name=name, unit=unit, sign=sign):
                        if at != place:
                            return state
                        state = tuple(part.clone() for part in state)
                        if name == "hidden":
                            state[0][..., unit] += sign
                            return state
                        state[1][..., unit] += sign
                        return step.gates[0].output * torch.tanh(state[1]), state[1]

                    sides.append(loss(decoder, memory, t, change=change))
                slope.append((sides[0] - sides[1]) / 2e-5)
            assert values[0, place] == pytest.approx(math.hypot(*slope), rel=1e-5)


def test_two_layers_have_states_of_their_own():
    found = norms(make(CONFIGS["up_down"]), make(CONFIGS["up_down"]).encode_memory(scene()), CAPTION, [3])
    assert set(found.states) == {f"layer {layer} {state}" for layer in (1, 2) for state in ("hidden", "cell")}


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_looked_at_together_do_not_meet(kind):
    decoder = make(CONFIGS[kind])
    memory = decoder.encode_memory(scene())
    together = norms(decoder, memory, CAPTION, [0, 3, 6])
    for j, t in enumerate(together.at):
        alone = norms(decoder, memory, CAPTION, [t])
        np.testing.assert_allclose(together.inputs[j], alone.inputs[0], rtol=1e-9)
        for name in alone.states:
            np.testing.assert_allclose(together.states[name][j], alone.states[name][0], rtol=1e-9)


def test_of_a_tied_matrix_only_the_reading_counts():
    tied = make(dataclasses.replace(CONFIGS["transformer"], tied=True))
    apart = make(dataclasses.replace(CONFIGS["transformer"], tied=False))
    apart.load_state_dict(tied.state_dict())
    found = [norms(each, each.encode_memory(scene()), CAPTION, [1, 6]).inputs for each in (tied, apart)]
    np.testing.assert_allclose(*found, rtol=1e-9)


class Linear(Decoder):
    """h' = a R h + E x with R a rotation: d loss / d x falls by exactly `a` with each word back."""

    def __init__(self, keeps: float, size: int = 6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.vocabulary_size = VOCABULARY
        self.embedding = nn.Embedding(VOCABULARY, size)
        self.turn = nn.Parameter(keeps * torch.linalg.qr(torch.randn(size, size, generator=generator))[0])
        self.words = nn.Linear(size, VOCABULARY)

    def encode_memory(self, features):
        return features.regions.mean((1, 2))

    def init_state(self, memory, num_sequences):
        return (memory[:, None, None].expand(-1, num_sequences, 6),)

    def step(self, words, state, memory):
        hidden = state[0] @ self.turn.T + self.embedding(words)
        return StepOutput(hidden=hidden, attention=None, gates=(Gates(hidden=hidden),)), (hidden,)

    def forward(self, words, memory, batch_sizes=None):
        return unroll(self, words, memory)

    def logits(self, hidden):
        return self.words(hidden)


@pytest.mark.parametrize("keeps", [0.5, 0.93, 1.0, 1.04])
def test_the_decay_of_a_linear_network(keeps):
    generator = np.random.default_rng(1)
    captions = [[1, *generator.integers(4, VOCABULARY, length).tolist(), END] for length in (41, 47, 53)]
    torch.manual_seed(0)
    found = probe(Linear(keeps), scene(3), captions, end=END, count=5)
    assert found.common == 31 and len(found.inputs) == 54
    fit = decay(found.inputs, found.common)
    # up to `common` the same losses are averaged at each distance, so the mean falls exactly as each does
    assert fit.rate == pytest.approx(keeps, rel=1e-4)  # float32 weights: the rotation is one to 1e-6
    assert fit.r2 == pytest.approx(1.0, abs=1e-6) or keeps == 1.0
    assert (fit.first, fit.last) == (1, 31)
    assert fit.left == pytest.approx(keeps**30, rel=1e-3)
    # 0.5^9 = 1/512 is felt, 0.5^10 = 1/1024 is not; 0.93^30 is
    assert fit.reach == (10 if keeps == 0.5 else 31)
    assert fit.half_life == (pytest.approx(math.log(0.5) / math.log(keeps), rel=0.01) if keeps < 0.99 else math.inf) \
        or keeps == 1.0  # fmt: skip
    np.testing.assert_allclose(found.inputs, found.states["hidden"], rtol=1e-9)  # x is added to h
    # the last word stands before <end>; its loss is felt at <start> and the words before it
    assert len(found.last_word) == 53
    assert found.counted[0] == sum(len({*loss_positions(n + 2, 5), n}) for n in (40, 46, 52))


def test_losses_are_of_the_last_quarter():
    assert loss_positions(8, 16) == [6, 7]
    assert loss_positions(201, 6) == [150, 160, 170, 180, 190, 200]
    assert loss_positions(1, 4) == [0]


def test_probing_changes_nothing():
    decoder = build_untrained(CONFIGS["lstm"], channels=CHANNELS, vocabulary_size=VOCABULARY, seed=1)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    features = Features(scene(2).regions.float())
    ticks = []
    first = probe(decoder, features, [CAPTION, CAPTION[:5]], end=END, on_caption=lambda: ticks.append(1))
    assert len(ticks) == 2 and decoder.training
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in decoder.parameters())
    again = probe(decoder, features, [CAPTION, CAPTION[:5]], end=END)
    assert np.array_equal(first.inputs, again.inputs), "dropout decides"


def test_a_fresh_decoder_leaves_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights = [
        build_untrained(
            CONFIGS["gru"], channels=CHANNELS, vocabulary_size=VOCABULARY, seed=seed
        ).embedding.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_fit_ends_where_nothing_is_left():
    fit = decay(np.array([3.0, 1.0, 0.1, 0.01, 0.001, 0.0, 0.0]), 6)
    assert (fit.last, fit.reach) == (4, 4)
    assert fit.rate == pytest.approx(0.1)
    assert decay(np.array([3.0, 1.0, 0.1, 1e-4, 1.0, 1.0]), 5).reach == 2  # what comes after is cut off
    with pytest.raises(UserError, match="at 1 distances only, too few to fit a decay"):
        decay(np.array([1.0, 0.5]), 6)


def made_up(rate: float, *, distances: int = 51, common: int = 30) -> Probe:
    k = np.arange(distances)
    curve = 5.0 * rate**k
    return Probe(
        inputs=curve,
        states={"hidden": 2 * curve},
        counted=np.maximum(1, 20 - k),
        common=common,
        last_word=curve[::-1].copy(),
    )


# 0.7^29 = 3e-5 has vanished, 0.8^30 = 1.2e-3 just not; 0.5 has after 10
@pytest.mark.parametrize(
    ("rnn", "lstm", "answer"),
    [
        ((0.5, 0.6), (0.9, 0.95), "yes"),
        ((0.5, 0.6), (0.7, 0.9), "partly"),
        ((0.5, 0.7), (0.6, 0.9), "no"),
        ((0.9, 0.95), (0.9, 0.95), "no"),
        ((0.9, 0.95), (0.5, 0.6), "no"),
    ],
)
def test_the_verdict(rnn, lstm, answer):
    stage = {"RNN": [made_up(rate) for rate in rnn], "LSTM": [made_up(rate) for rate in lstm]}
    told = gradients_report.verdict(summarize(stage), 30)
    assert told["answer"] == answer
    if answer == "yes":
        assert (
            "over 10 to 14 words of 30 in the RNN (halved in 1.0 to 1.4 words) and over all 30 words"
            in told["sentence"]
        )
    assert ("longer captions" in told["sentence"]) == (min(*rnn, *lstm) > 0.8)
    assert gradients_report.verdict(summarize({"RNN": stage["RNN"], "GRU": stage["LSTM"]}), 30) is None


def test_a_report_s_numbers():
    told = summarize({"GRU": [made_up(0.8), made_up(0.9)]})["GRU"]
    assert told["seeds"] == 2
    assert told["inputs"]["mean"][3] == pytest.approx(5 * math.sqrt(0.8**3 * 0.9**3))
    assert (told["inputs"]["low"][3], told["inputs"]["high"][3]) == pytest.approx((5 * 0.8**3, 5 * 0.9**3))
    found = told["inputs"]["decay"]
    assert (found["rate"]["low"], found["rate"]["high"]) == pytest.approx((0.8, 0.9))
    assert found["rate"]["mean"] == pytest.approx(math.sqrt(0.72))
    assert found["half_life"] == pytest.approx([math.log(0.5) / math.log(0.8), math.log(0.5) / math.log(0.9)])
    assert found["distances"] == [1, 30] and found["r2"] == pytest.approx([1, 1])
    assert told["states"]["hidden"]["decay"]["rate"]["low"] == pytest.approx(0.8)
    text = gradients_report.table({"trained": {"GRU": told}})
    assert "GRU, by inputs" in text and "0.849" in text and "0.800-0.900" in text and "1-30" in text


@pytest.mark.parametrize("kind", CONFIGS)
def test_relatives_have_the_same_sizes(kind):
    found = comparable_configs(CONFIGS[kind], max_positions=31)
    assert {"RNN", "GRU", "LSTM", "Transformer"} <= found.keys()
    assert CONFIGS[kind] in found.values()
    assert {each.hidden for each in found.values()} == {CONFIGS[kind].hidden}
    for name, config in found.items():
        assert gradients.label(config) == name
        decoder = make(config)
        assert (config.max_positions or 31) >= 17
        norms(decoder, decoder.encode_memory(scene()), CAPTION, [6])


def test_drawing(tmp_path):
    stage = summarize(
        {"RNN": [made_up(0.5)], "LSTM": [made_up(0.9), made_up(0.95)], "Up down": [made_up(1.0)]}
    )
    for each in stage["RNN"]["inputs"].values():
        if isinstance(each, list):
            each[40:] = [0.0] * 11  # nothing left in float64
    told = {"initialisation": stage, "trained": {}, "common": 30}
    verdict = {"initialisation": gradients_report.verdict(stage, 30), "trained": None}
    draw_gradients({**json.loads(json.dumps(told)), "verdict": verdict}, tmp_path / "one.png", title="of $ 1")
    both = {**told, "trained": {"LSTM": stage["LSTM"]}, "verdict": verdict}
    draw_gradients(both, tmp_path / "two.png", title="both")
    one, two = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("one", "two"))
    assert two.width > 1.5 * one.width
    for image, colours in ((one, ((200, 85, 61), (61, 111, 200))), (two, ((61, 111, 200),))):
        pixels = np.asarray(image).reshape(-1, 3).astype(int)
        for colour in colours:
            assert (np.abs(pixels - colour) < 3).all(1).sum() > 200
    assert VANISHED == 1e-3
