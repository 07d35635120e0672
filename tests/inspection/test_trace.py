"""The trace shows what happened: the steps of the untraced search, and the gates that another library computes."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions, image_key
from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SampleConfig, constraint_ids, search
from captioning.inspection.trace import (
    GATES,
    Recorder,
    Trace,
    half_life,
    save_arrays,
    summary,
    trace_search,
    trace_text,
)
from captioning.inspection.trace_figure import draw_trace
from captioning.models.decoders import SoftAttentionLSTMConfig, build
from tests.helpers.models import DECODERS, PREPROCESSING, WORDS, tiny_captioner

SEARCHES = {
    "greedy": GreedyConfig(max_length=9),
    "beam": BeamConfig(width=5, n_best=3, max_length=9),
    "forced": BeamConfig(width=3, max_length=9, prefix="the", forced=("red cat",)),
    "sampled": SampleConfig(samples=3, max_length=9),
    "all words": BeamConfig(width=3, min_length=7, max_length=7, length_rule="sum"),
}


def captioner_of(kind: str) -> Captioner:
    """A tiny captioner; "gru" and "rnn" are the LSTM's with another cell."""
    if kind in DECODERS:
        return tiny_captioner(kind)
    captioner = tiny_captioner("lstm")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        captioner.decoder = build(
            SoftAttentionLSTMConfig(embedding=7, attention_size=5, hidden=11, cell=kind),
            channels=captioner.encoder.channels,
            vocabulary_size=len(captioner.vocabulary),
        ).eval()
    for parameter in captioner.decoder.parameters():
        parameter.data *= 3
    return captioner


def pixels_of(seed: int) -> torch.Tensor:
    size = PREPROCESSING.size
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))


KINDS = (*DECODERS, "gru", "rnn")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SEARCHES)
@torch.inference_mode()
def test_a_traced_search_is_the_untraced_one_bit_for_bit(kind, name):
    captioner, config = captioner_of(kind), SEARCHES[name]
    vocabulary = captioner.vocabulary
    options = {
        "special": vocabulary.special_tokens,
        "constraints": constraint_ids(config, vocabulary),
        "keys": torch.tensor([image_key("x")]),
    }
    for seed in range(3):
        pixels = pixels_of(seed)
        memory = captioner.decoder.encode_memory(captioner.features(pixels[None]))
        plain = search(captioner.decoder, memory, config, **options)
        recorded = search(Recorder(captioner.decoder, []), memory, config, **options)
        for field, ours, theirs in zip(plain._fields, recorded, plain, strict=True):
            assert torch.equal(ours, theirs), field
        trace = trace_search(captioner, pixels, config=config, image_id="x")
        prediction = generate_captions(captioner, pixels[None], ["x"], config=config)[0]
        told = summary(trace)
        assert told["caption"] == prediction.caption
        assert told["words"][len(prediction.caption.split()) :] == ["<end>"] * prediction.finished
        length = int(plain.lengths[0, 0])
        assert np.array_equal(trace.word_logprobs, plain.word_logprobs[0, 0, :length].double().numpy())
        assert told["logprob"] == pytest.approx(prediction.logprob, rel=1e-5)
        assert told["confidence"] == pytest.approx(prediction.confidence, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_search_s_trace_is_that_of_its_caption_and_of_no_other_hypothesis(kind):
    """What the beam computed on the way equals reading its words back, one sequence alone, in float64."""
    captioner = captioner_of(kind).double()
    for seed in range(3):
        pixels = pixels_of(seed).double()
        trace = trace_search(captioner, pixels, config=SEARCHES["beam"])
        ids = [captioner.vocabulary.ids[word] for word in trace.words]
        memory = captioner.decoder.encode_memory(captioner.features(pixels[None]))
        state, word = captioner.decoder.init_state(memory, 1), captioner.vocabulary.start
        for t, chosen in enumerate(ids):
            step, state = captioner.decoder.step(torch.tensor([[word]]), state, memory)
            logprob = torch.log_softmax(captioner.decoder.logits(step.hidden)[0, 0], 0)[chosen]
            assert trace.word_logprobs[t] == pytest.approx(float(logprob), abs=1e-12)
            assert (trace.attention is None) == (step.attention is None)
            if trace.attention is not None:
                np.testing.assert_allclose(trace.attention[t], step.attention[0, 0].numpy(), atol=1e-12)
            assert len(step.gates) == len(trace.layers)
            for layer, gates in zip(trace.layers, step.gates, strict=True):
                there = {name: value for name, value in gates._asdict().items() if value is not None}
                assert there.keys() == layer.keys()
                for name, value in there.items():
                    np.testing.assert_allclose(layer[name][t], value[0, 0].numpy(), atol=1e-12)
            word = chosen


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_given_caption_is_traced_as_it_is_read(kind):
    captioner, pixels = captioner_of(kind), pixels_of(5)
    trace = trace_text(captioner, pixels, "The café, on grass: a dog.")
    assert trace.words == ("the", "café", "on", "grass", "a", "dog", "<end>")
    memory = captioner.decoder.encode_memory(captioner.features(pixels[None]))
    ids = [captioner.vocabulary.ids[word] for word in trace.words]
    state, word = captioner.decoder.init_state(memory, 1), captioner.vocabulary.start
    for t, chosen in enumerate(ids):
        step, state = captioner.decoder.step(torch.tensor([[word]]), state, memory)
        if trace.attention is not None:
            assert np.array_equal(trace.attention[t], step.attention[0, 0].numpy())
        for layer, gates in zip(trace.layers, step.gates, strict=True):
            for name, values in layer.items():
                assert np.array_equal(values[t], getattr(gates, name)[0, 0].numpy()), name
        logprob = torch.log_softmax(captioner.decoder.logits(step.hidden)[0, 0], 0)[chosen]
        assert trace.word_logprobs[t] == pytest.approx(float(logprob), rel=1e-5, abs=1e-6)
        word = chosen


@torch.no_grad()
def test_gates_are_those_of_torch_lstm():
    """Attention is cut off, so that the decoder is an LSTM over its words and torch has the same."""
    captioner, pixels = tiny_captioner("lstm").double(), pixels_of(1).double()
    decoder, size = captioner.decoder, 11
    decoder.context_proj.weight.zero_()
    theirs = torch.nn.LSTM(7, size, batch_first=True).double()
    theirs.weight_ih_l0.copy_(decoder.input_proj.weight)
    theirs.bias_ih_l0.copy_(decoder.input_proj.bias)
    theirs.weight_hh_l0.copy_(decoder.hidden_proj.weight[: 4 * size])
    theirs.bias_hh_l0.zero_()
    trace = trace_text(captioner, pixels, "the dog runs on red grass")
    layer = trace.layers[0]
    ids = [1, *(captioner.vocabulary.ids[word] for word in trace.words[:-1])]
    read = decoder.embedding.weight[ids][None]  # (1, T, E)
    hidden, cell = (part[:, None] for part in decoder.init_state(_memory(captioner, pixels), 1))
    hidden, cell = hidden[:, 0], cell[:, 0]  # (1, 1, H): layers, batch, units
    for t in range(len(ids)):
        before = cell
        said = read[0, t] @ theirs.weight_ih_l0.T + theirs.bias_ih_l0 + hidden[0, 0] @ theirs.weight_hh_l0.T
        enter, forget, candidate, out = said.chunk(4)  # in the order that torch documents
        _, (hidden, cell) = theirs(read[:, t : t + 1], (hidden, cell))
        expected = {
            "input": torch.sigmoid(enter),
            "forget": torch.sigmoid(forget),
            "candidate": torch.tanh(candidate),
            "output": torch.sigmoid(out),
            "cell": cell[0, 0],
            "hidden": hidden[0, 0],
        }
        assert layer.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(layer[name][t], value.numpy(), atol=1e-12, err_msg=name)
        told = layer["forget"][t] * before[0, 0].numpy() + layer["input"][t] * layer["candidate"][t]
        np.testing.assert_allclose(told, cell[0, 0].numpy(), atol=1e-12)


@torch.no_grad()
def test_gates_are_those_of_torch_gru():
    captioner, pixels = captioner_of("gru").double(), pixels_of(1).double()
    decoder, size = captioner.decoder, 11
    decoder.context_proj.weight.zero_()
    decoder.cell.bias.normal_()
    theirs = torch.nn.GRU(7, size, batch_first=True).double()
    theirs.weight_ih_l0.copy_(decoder.input_proj.weight)
    theirs.bias_ih_l0.copy_(decoder.input_proj.bias)
    theirs.weight_hh_l0.copy_(decoder.hidden_proj.weight[: 3 * size])
    theirs.bias_hh_l0.copy_(torch.cat([torch.zeros(2 * size), decoder.cell.bias]))
    trace = trace_text(captioner, pixels, "the dog runs on red grass")
    layer = trace.layers[0]
    ids = [1, *(captioner.vocabulary.ids[word] for word in trace.words[:-1])]
    first = decoder.init_state(_memory(captioner, pixels), 1)[0]  # (1, 1, H)
    hidden = theirs(decoder.embedding.weight[ids][None], first)[0][0].numpy()  # (T, H)
    np.testing.assert_allclose(layer["hidden"], hidden, atol=1e-12)
    before = np.concatenate([first[0].numpy(), hidden[:-1]])
    update = layer["update"]
    np.testing.assert_allclose((1 - update) * layer["candidate"] + update * before, hidden, atol=1e-12)
    assert "cell" not in layer and "forget" not in layer


def _memory(captioner, pixels):
    return captioner.decoder.encode_memory(captioner.features(pixels[None]))


def test_a_decoder_without_gates():
    told = summary(trace_search(tiny_captioner("transformer"), pixels_of(0)))
    assert told["layers"] == [] and "no gates" in told["note"]
    assert told["attention"]["regions"] == 25


def test_layers_are_told_apart():
    told = summary(trace_search(tiny_captioner("up_down"), pixels_of(0)))
    assert [set(layer["gates"]) for layer in told["layers"]] == [{"input", "forget", "output"}] * 2
    assert "note" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the zebra", "'zebra' is not in the model's vocabulary"),
        ("a <unk>", "is not in the model"),
        (" . ", "contains no words"),
        (" ".join(["dog"] * 17), "17 words, but this model's decoder reads at most 16"),
    ],
)
def test_captions_that_cannot_be_read(text, said):
    with pytest.raises(UserError, match=said):
        trace_text(tiny_captioner("transformer"), pixels_of(0), text)
    if "17" not in said:
        with pytest.raises(UserError, match=said):
            trace_text(tiny_captioner("lstm"), pixels_of(0), text)


def made_up(words: int, *, regions: int = 25, sentinel: bool = False) -> Trace:
    """A trace of random numbers whose shares are easily counted."""
    generator = np.random.default_rng(7)
    layer = {name: generator.random((words, 13)) for name in ("input", "forget", "output")}
    layer |= {name: generator.standard_normal((words, 13)) for name in ("cell", "hidden", "candidate")}
    if sentinel:
        layer["sentinel"] = generator.random(words)
    caption = [WORDS[t % len(WORDS)] for t in range(words - 1)]
    return Trace(
        caption=" ".join(caption),
        words=(*caption, "<end>"),
        word_logprobs=np.log(generator.random(words)),
        attention=generator.dirichlet(np.ones(regions), words),
        layers=(layer,),
    )


def test_the_summary_s_numbers():
    trace = made_up(7, sentinel=True)
    told = json.loads(json.dumps(summary(trace)))
    layer, given = told["layers"][0], trace.layers[0]
    assert layer["units"] == 13 and list(layer["gates"]) == [name for name in GATES if name in given]
    for name in ("input", "forget", "output"):
        values = given[name].ravel().tolist()
        gate = layer["gates"][name]
        assert gate["below_0.1"] == sum(value < 0.1 for value in values) / 91
        assert gate["above_0.9"] == sum(value > 0.9 for value in values) / 91
        assert gate["mean"][3] == pytest.approx(sum(given[name][3].tolist()) / 13)
    assert layer["cell_norm"][2] == pytest.approx(math.sqrt(sum(x * x for x in given["cell"][2].tolist())))
    assert layer["sentinel"] == given["sentinel"].tolist()
    assert told["attention"]["strongest_region"][5] == trace.attention[5].tolist().index(
        trace.attention[5].max()
    )
    assert told["caption"] == "a dog cat café runs on" and told["words"][-1] == "<end>"
    assert told["logprob"] == pytest.approx(sum(trace.word_logprobs.tolist()))


def test_how_wide_a_look_is():
    even, one = np.full(9, 1 / 9), np.eye(9)[4]
    trace = made_up(3, regions=9)._replace(attention=np.stack([even, one, 0.3 * even]))
    assert summary(trace)["attention"]["regions_in_use"] == pytest.approx([9, 1, 9])


def test_half_lives():
    """What keeps f of itself a word is halved after ln 2 / -ln f of them; one gate of many is enough to wipe."""
    seven = np.full((11, 5), 0.5 ** (1 / 7))
    found = half_life(seven)
    assert found["words"] == pytest.approx({"p10": 7, "median": 7, "p90": 7})
    assert found["longer_than_caption"] == 0
    assert half_life(np.full((5, 5), 0.5 ** (1 / 7)))["longer_than_caption"] == 1
    assert half_life(np.ones((4, 5)))["words"]["median"] is None
    wiped = np.ones((4, 5))
    wiped[2] = 0.0
    assert half_life(wiped)["words"]["median"] == 0
    mixed = np.array([[0.25], [1.0]])  # a half after two words
    assert half_life(mixed)["words"]["median"] == pytest.approx(1.0)


def test_arrays_on_disk(tmp_path):
    trace = made_up(5, sentinel=True)
    save_arrays(trace, tmp_path / "new" / "x.npz")
    with np.load(tmp_path / "new" / "x.npz", allow_pickle=False) as found:
        assert set(found) == {
            "words", "word_logprobs", "attention", *(f"layer1.{name}" for name in trace.layers[0]),
        }  # fmt: skip
        assert found["words"].tolist() == list(trace.words)
        assert np.array_equal(found["attention"], trace.attention)
        for name, values in trace.layers[0].items():
            assert np.array_equal(found[f"layer1.{name}"], values)


@pytest.mark.parametrize(
    "trace",
    [
        made_up(5),
        made_up(1, sentinel=True),
        made_up(61),
        made_up(6, regions=7),  # no grid
        made_up(6)._replace(layers=()),
        made_up(6)._replace(attention=None),
    ],
    ids=["short", "one word", "long", "no grid", "no gates", "no attention"],
)
def test_drawing(trace, tmp_path):
    path = tmp_path / "x.png"
    title = "a $ caption_{x}"
    draw_trace(trace, Image.new("RGB", (67, 41), "orange"), path, preprocessing=PREPROCESSING, title=title)
    drawn = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert (drawn == (255, 165, 0)).all(1).sum() > 3000  # the photo itself
    forget = (np.abs(drawn.astype(int) - (200, 85, 61)) < 3).all(1).sum()  # the line of the forget gate
    assert (forget > 100) == bool(trace.layers)
