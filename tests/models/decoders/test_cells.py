"""Recurrent cells beside torch's, the gates that decoders report, and the forget bias."""

import pytest
import torch

from captioning.models.decoders import build
from captioning.models.decoders.cells import CELLS
from captioning.tensors import Features
from tests.helpers.decoders import CHANNELS, CONFIGS, RECURRENT, VOCABULARY, make, scene


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
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    state = tuple(part[:, 0].repeat_interleave(3, 0)[None] for part in memory.state)
    expected, _ = other(decoder.embedding(ids).flatten(0, 1), state if cell == "lstm" else state[0])
    torch.testing.assert_close(decoder(ids, memory).hidden[..., :size].flatten(0, 1), expected)


def test_every_cell_has_its_number_of_gates_and_states():
    for cell in (kind(5) for kind in CELLS.values()):
        gates = torch.randn(2, 3, cell.num_gates * 5)
        state, record = cell(gates, gates, (torch.zeros(2, 3, 5),) * cell.num_states)
        assert len(state) == cell.num_states and all(part.shape == (2, 3, 5) for part in state)
        assert record.hidden is state[0]


@pytest.mark.parametrize("name", RECURRENT)
def test_gates_explain_the_next_state(name):
    decoder = make(name)
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    state = decoder.init_state(memory, 3)
    previous = None
    for step_ids in ids.unbind(2):
        output, state = decoder.step(step_ids, state, memory)
        for layer, gates in enumerate(output.gates):
            cell = getattr(decoder.config, "cell", "lstm")
            if previous is not None and cell == "lstm":
                expected = gates.forget * previous[layer].cell + gates.input * gates.candidate
                torch.testing.assert_close(gates.cell, expected)
                torch.testing.assert_close(gates.hidden, gates.output * torch.tanh(gates.cell))
            if previous is not None and cell == "gru":
                expected = (1 - gates.update) * gates.candidate + gates.update * previous[layer].hidden
                torch.testing.assert_close(gates.hidden, expected)
                assert gates.reset.min() > 0 and gates.reset.max() < 1
            assert gates.hidden.shape == (2, 3, decoder.config.hidden)
            assert (gates.sentinel is not None) == (name == "adaptive_attention")
        assert len(output.gates) == (2 if name.startswith("up_down") else 1)
        previous = output.gates


@pytest.mark.parametrize("name", [name for name in RECURRENT if "rnn" not in name])
def test_the_forget_bias_is_the_mean_logit_of_the_forget_gates_at_first(name):
    logits = {}
    for bias in (1.0, 6.0):
        torch.manual_seed(0)
        config = type(CONFIGS[name])(**{**vars(CONFIGS[name]), "forget_bias": bias})
        decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).eval()
        features, ids = scene(2, 3, 5, 1)
        memory = decoder.encode_memory(Features(features.regions.float()))
        output, _ = decoder.step(ids[..., 0], decoder.init_state(memory, 3), memory)
        forget_gates = [gates.update if gates.forget is None else gates.forget for gates in output.gates]
        logits[bias] = [gate.logit().mean().item() for gate in forget_gates]
    for low, high in zip(logits[1.0], logits[6.0], strict=True):
        assert low == pytest.approx(1, abs=0.4) and high == pytest.approx(6, abs=0.4)
