"""What every decoder must do: its config need only be in the union `DecoderConfig` to be tested here."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import BeamConfig, GreedyConfig, search
from captioning.models.decoders import build, reorder_state, unroll
from captioning.ops.cpu_kernels import probe
from captioning.tensors import Features
from captioning.training.losses import caption_logprobs, cross_entropy, hard_attention
from tests.helpers.decoders import CHANNELS, CONFIGS, KINDS, SPECIAL, VOCABULARY, check_search, make, scene

every_decoder = pytest.mark.parametrize("name", CONFIGS)


def test_every_kind_of_the_union_is_tested():
    assert {type(config) for config in CONFIGS.values()} == set(KINDS)


@every_decoder
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
    features, ids = scene(images, sequences, regions, length, seed=seed, masked=masked)
    memory = decoder.encode_memory(features)
    output, stepped = decoder(ids, memory), unroll(decoder, ids, memory)
    torch.testing.assert_close(output.hidden, stepped.hidden)
    assert output.hidden.shape[:3] == (images, sequences, length)
    assert decoder.logits(output.hidden).shape == (images, sequences, length, VOCABULARY)
    if name.startswith("show_tell"):
        assert output.attention is None and stepped.attention is None
        return
    torch.testing.assert_close(output.attention, stepped.attention)
    sums = torch.ones(images, sequences, length, dtype=torch.double)
    torch.testing.assert_close(output.attention.sum(-1), sums)


@every_decoder
def test_gradients_of_forward_equal_those_of_unrolled_steps(name):
    decoder = make(name).train()
    features, ids = scene(2, 3, 5, 7)
    gradients = []
    for run in (decoder, lambda ids, memory: unroll(decoder, ids, memory)):
        decoder.zero_grad()
        torch.manual_seed(1)  # hard attention draws regions, and images that use the expected region
        logits = decoder.logits(run(ids, decoder.encode_memory(features)).hidden)
        torch.sin(logits).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in decoder.named_parameters()})
    for key, gradient in gradients[0].items():
        if key == "position_embedding.weight":
            gradient, gradients[1][key] = gradient[:7], gradients[1][key][:7]
        assert gradient is not None and gradient.abs().sum() > 0, f"no gradient reaches {key}"
        torch.testing.assert_close(gradient, gradients[1][key])


@every_decoder
def test_batch_sizes_do_not_change_the_outputs_that_are_needed(name):
    decoder = make(name)
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    batch_sizes = (3, 3, 3, 2, 2, 1, 1)
    everything, needed = decoder(ids, memory), decoder(ids, memory, batch_sizes)
    for t, count in enumerate(batch_sizes):
        torch.testing.assert_close(needed.hidden[:, :count, t], everything.hidden[:, :count, t])


@every_decoder
def test_an_invalid_region_does_not_matter(name):
    decoder = make(name)
    features, ids = scene(2, 3, 5, 7)
    padding = torch.full((2, 2, CHANNELS), 1e3, dtype=torch.double)
    padded = Features(
        regions=torch.cat([features.regions, padding], 1),
        mask=torch.tensor([[True] * 5 + [False] * 2]).expand(2, -1),
    )
    plain, masked = (decoder(ids, decoder.encode_memory(case)).hidden for case in (features, padded))
    torch.testing.assert_close(plain, masked)


@every_decoder
def test_the_order_of_images_and_of_sequences_does_not_matter(name):
    decoder = make(name)
    features, ids = scene(3, 2, 5, 7, masked=True)
    images, sequences = torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    hidden = decoder(ids, decoder.encode_memory(features)).hidden
    shuffled = Features(features.regions[images], features.mask[images])
    permuted = decoder(ids[images][:, sequences], decoder.encode_memory(shuffled)).hidden
    torch.testing.assert_close(permuted, hidden[images][:, sequences])


@every_decoder
def test_an_output_depends_on_no_later_token_and_no_other_sequence(name):
    decoder = make(name)
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    changed = ids.clone()
    changed[:, 1, 4] = (changed[:, 1, 4] + 1) % VOCABULARY
    difference = (decoder(ids, memory).hidden - decoder(changed, memory).hidden).abs().amax((0, 3))  # (K, T)
    assert difference[1, 4:].min() > 0
    difference[1, 4:] = 0
    assert difference.max() == 0


@every_decoder
def test_a_reordered_state_continues_the_parents(name):
    decoder = make(name)
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    parents = torch.tensor([[2, 0, 0, 1], [1, 1, 2, 0]])
    state = decoder.init_state(memory, 3)
    for t in range(4):
        _, state = decoder.step(ids[..., t], state, memory)
    chosen = torch.gather(ids, 1, parents[..., None].expand(-1, -1, 7))
    output, _ = decoder.step(chosen[..., 4], reorder_state(state, parents), memory)
    torch.testing.assert_close(output.hidden, decoder(chosen, memory).hidden[:, :, 4])


@every_decoder
@torch.no_grad()
def test_searches_agree_with_forward(name):
    decoder = make(name)
    check_search(decoder, decoder.encode_memory(scene(3, 1, 5, 1, masked=True)[0]))


def training_loss(decoder, features, ids, batch_sizes=None, *, smoothing=0.1):
    """The summed loss of predicting `ids` (B, K, T + 1), as in training."""
    output = decoder(ids[..., :-1], decoder.encode_memory(features), batch_sizes)
    counts = torch.ones_like(ids[..., 1:], dtype=torch.bool)  # targets that count
    if batch_sizes is not None:
        counts &= torch.arange(ids.shape[1])[:, None] < torch.tensor(batch_sizes)
    logits, targets = decoder.logits(output.hidden[counts]).float(), ids[..., 1:][counts]
    loss = cross_entropy(logits, targets, smoothing=smoothing)
    if output.sampled_regions is not None:
        logprob = caption_logprobs(logits, targets, counts)
        loss = loss + hard_attention(output.attention, output.sampled_regions, logprob, counts)
    return loss


@every_decoder
def test_captions_of_a_few_images_are_learned(name):
    """After some updates on seven images with one caption each, greedy decoding returns these captions."""
    torch.manual_seed(0)
    decoder = build(CONFIGS[name], channels=CHANNELS, vocabulary_size=VOCABULARY)
    features, ids = scene(7, 1, 3, 5, seed=3)
    features, ids = Features(features.regions.float()), ids.clamp(min=4)
    ids[..., 0], ids[..., -1] = 1, 2
    optimizer = torch.optim.Adam(decoder.parameters(), 0.02)
    for _ in range(90):
        loss = training_loss(decoder, features, ids, smoothing=0.0)
        optimizer.zero_grad()
        (loss / 28).backward()
        optimizer.step()
    decoder.eval()
    with torch.no_grad():
        memory = decoder.encode_memory(features)
        hypotheses = search(decoder, memory, GreedyConfig(max_length=4), special=SPECIAL)
    assert torch.equal(hypotheses.ids, ids[..., 1:])


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@every_decoder
def test_a_training_step_under_autocast_is_near_that_in_float32(name, dtype, kernels, monkeypatch):
    """As a user's own training loop would run it, on a CPU; with the CPU kernels and with their switch off."""
    monkeypatch.setattr(probe, "ENABLED", kernels)
    decoder = make(name).float().train()
    features, ids = scene(2, 3, 5, 7, masked=True)
    features = features._replace(regions=features.regions.float())

    def step(enabled):
        torch.manual_seed(0)  # hard attention draws regions
        decoder.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = training_loss(decoder, features, ids, (3, 3, 3, 2, 2, 1))
        loss.backward()
        gradients = [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    loss, gradient = step(False)
    mixed_loss, mixed_gradient = step(True)
    assert mixed_loss != loss and abs(mixed_loss - loss) < 0.01 * loss
    assert mixed_gradient.dtype == torch.float32 and mixed_gradient.shape == gradient.shape
    assert (mixed_gradient - gradient).norm() < 8 * torch.finfo(dtype).eps * gradient.norm()


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize(
    "config", [GreedyConfig(max_length=9), BeamConfig(width=3, max_length=9)], ids=["greedy", "beam"]
)
@every_decoder
def test_a_search_under_autocast_returns_captions_with_their_log_probabilities(
    name, config, kernels, monkeypatch
):
    monkeypatch.setattr(probe, "ENABLED", kernels)
    decoder = make(name).float()
    features, _ = scene(5, 1, 7, 1, masked=True)
    features = features._replace(regions=features.regions.float())
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hypotheses = search(decoder, decoder.encode_memory(features), config, special=SPECIAL)
        ids = torch.cat([torch.ones_like(hypotheses.ids[..., :1]), hypotheses.ids[..., :-1]], -1)
        logits = decoder.logits(decoder(ids, decoder.encode_memory(features)).hidden)
    logprob = logits.log_softmax(-1).gather(-1, hypotheses.ids[..., None])[..., 0]
    counted = torch.arange(ids.shape[-1]) < hypotheses.lengths[..., None]
    expected = (logprob * counted).sum(-1)
    assert (hypotheses.lengths > 0).all()
    torch.testing.assert_close(hypotheses.logprob.float(), expected, rtol=0.03, atol=0.1)


@every_decoder
def test_the_kernels_give_the_numbers_of_the_plain_operations(name, monkeypatch):
    features, ids = scene(2, 3, 5, 7, masked=True)
    features = features._replace(regions=features.regions.float())
    decoder = make(name).float().train()
    results = []
    for enabled in (True, False):
        monkeypatch.setattr(probe, "ENABLED", enabled)
        twin = copy.deepcopy(decoder)
        torch.manual_seed(0)
        loss = training_loss(twin, features, ids)
        loss.backward()
        with torch.inference_mode():
            twin.eval()
            beam = search(
                twin, twin.encode_memory(features), BeamConfig(width=3, max_length=9), special=SPECIAL
            )
        gradients = {key: parameter.grad for key, parameter in twin.named_parameters()}
        results.append((loss.detach(), beam.ids, beam.logprob, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@every_decoder
def test_the_config_is_kept_and_says_how_many_tokens_can_be_read(name):
    decoder = make(name)
    assert dataclasses.asdict(decoder.config) == dataclasses.asdict(CONFIGS[name])
    limit = CONFIGS[name].max_positions
    features, ids = scene(1, 1, 5, 40 if limit is None else limit)
    assert decoder(ids, decoder.encode_memory(features)).hidden.isfinite().all()
