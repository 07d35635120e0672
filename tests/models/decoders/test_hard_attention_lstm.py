"""Hard attention: its REINFORCE estimate beside the exact gradient, its loss and its sampling."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from captioning.loaders.captions import pad_captions
from captioning.models.decoders import HardAttentionLSTMConfig, build
from captioning.models.decoders.base import unroll
from captioning.ops.noise import sequence_states
from captioning.tensors import Batch, Features, SampledRegions
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.config import TrainingConfig
from captioning.training.losses import (
    caption_logprobs,
    cross_entropy,
    hard_attention,
    move_baseline,
    sampled_logprob,
)
from captioning.training.objective import BatchStats, CrossEntropy

CHANNELS, VOCABULARY, REGIONS, LENGTH = 5, 7, 3, 2


def made(**changes):
    torch.manual_seed(0)
    config = HardAttentionLSTMConfig(embedding=3, hidden=7, attention_size=5, dropout=0.0, **changes)
    decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).double().train()
    for parameter in decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.5)
    return decoder


def scene(images=1, captions=1, length=LENGTH):
    generator = torch.Generator().manual_seed(1)
    regions = torch.randn(images, REGIONS, CHANNELS, generator=generator, dtype=torch.double)
    return Features(regions), torch.randint(VOCABULARY, (images, captions, length + 1), generator=generator)


def run(decoder, features, ids):
    """Output, differentiable log-likelihood of each caption, and the loss term of hard attention."""
    output = decoder(ids[..., :-1], decoder.encode_memory(features))
    logits, targets = decoder.logits(output.hidden), ids[..., 1:]
    counts = torch.ones_like(targets, dtype=torch.bool)
    logprob = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].sum(-1)  # (B, K)
    detached = caption_logprobs(logits[counts], targets[counts], counts)
    torch.testing.assert_close(detached, logprob.detach())
    loss = hard_attention(output.attention, output.sampled_regions, detached, counts)
    return output, logprob, loss


def move(sampled, logprob, counts):
    """Move the baseline as an update of this batch alone does."""
    terms = sampled_logprob(sampled, logprob, counts)
    move_baseline(sampled.baseline, {name: float(value) for name, value in terms.items()})


@pytest.mark.parametrize("baseline", [0.0, -2.7])
def test_reinforce_has_the_gradient_of_the_expectation(monkeypatch, baseline):
    """The estimate's mean over all sequences of regions, weighted by their probabilities, is the exact gradient."""
    decoder = made(expected=0.0, reward=1.0, entropy=0.0)
    features, ids = scene()
    parameters = list(decoder.parameters())
    expectation, total, estimate = 0.0, 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for regions in itertools.product(range(REGIONS), repeat=LENGTH):
        drawn = iter(regions)
        monkeypatch.setattr(torch, "multinomial", lambda _, count: torch.tensor([[next(drawn)]]))  # noqa: B023
        decoder.baseline.fill_(baseline)
        output, logprob, loss = run(decoder, features, ids)
        assert output.sampled_regions.regions.flatten().tolist() == list(regions)
        chosen = [output.attention[0, 0, t, region] for t, region in enumerate(regions)]
        probability = torch.stack(chosen).prod()
        expectation, total = expectation + probability * logprob.sum(), total + probability.detach()
        gradients = torch.autograd.grad(-logprob.sum() + loss, parameters, retain_graph=True)
        for sum_, gradient in zip(estimate, gradients, strict=True):
            sum_ -= probability.detach() * gradient
    torch.testing.assert_close(total, torch.ones_like(total))
    exact = torch.autograd.grad(expectation, parameters)
    for (name, _), one, other in zip(decoder.named_parameters(), estimate, exact, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    gradient = dict(zip(dict(decoder.named_parameters()), exact, strict=True))["score_weight"]
    assert gradient.abs().max() > 1e-3  # the attention has something to learn here


def test_entropy_and_baseline():
    attention = torch.tensor([[[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    attention = attention.double().requires_grad_()
    counts = torch.tensor([[[True, True], [True, False]]])
    regions = torch.tensor([[[1, 2], [0, 0]]])
    logprob = torch.tensor([[-3.0, -5.0]], dtype=torch.double)
    baseline = torch.tensor(float("nan"), dtype=torch.double)
    sampled = SampledRegions(regions, torch.tensor([[True]]), baseline, reward=0.7, entropy=0.3)
    entropy = torch.tensor([0.5, 0.5, 0.2, 0.3, 0.5]).double()
    entropy = -(entropy * entropy.log()).sum()
    loss = hard_attention(attention, sampled, logprob, counts)
    torch.testing.assert_close(loss, -0.3 * entropy)  # there is no b yet
    move(sampled, logprob, counts)
    assert baseline == -4
    loss = hard_attention(attention, sampled, logprob, counts)
    chosen = torch.tensor([0.25, 1.0]).double().log()  # log p(s) of both captions
    expected = -0.7 * (1.0 * chosen[0] - 1.0 * chosen[1]) - 0.3 * entropy  # b is the mean, -4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert attention.grad.isfinite().all()
    move(sampled, logprob + 1, counts)
    assert float(baseline) == pytest.approx(0.9 * -4 + 0.1 * -3)
    # images that used the expected region add nothing
    unseen = sampled._replace(sampled=torch.tensor([[False]]))
    assert hard_attention(attention, unseen, logprob - 9, counts) == 0
    move(unseen, logprob - 9, counts)
    assert float(baseline) == pytest.approx(-3.9)


def test_regions_are_sampled_from_the_attention_and_become_the_context():
    decoder = made(expected=0.0)
    features, ids = scene(captions=4001, length=1)
    ids[..., 0] = 2
    output = decoder(ids[..., :-1], decoder.encode_memory(features))
    drawn = output.sampled_regions.regions[0, :, 0]
    share = torch.bincount(drawn, minlength=REGIONS).double() / 4001
    torch.testing.assert_close(share, output.attention[0, 0, 0], atol=0.04, rtol=0)
    context = output.hidden[0, :, 0, 7 : 7 + CHANNELS]
    torch.testing.assert_close(context, features.regions[0][drawn])


@pytest.mark.parametrize("training", [True, False])
def test_regions_sampled_from_noise_follow_the_attention_and_the_steps(training):
    decoder = made(expected=0.5).train(training)
    features, ids = scene(captions=4001, length=3)
    ids[:] = ids[:, :1]
    states = sequence_states(3, torch.arange(1), 4001)
    memory = decoder.with_noise(decoder.encode_memory(features), states)
    output, steps = decoder(ids[..., :-1], memory), unroll(decoder, ids[..., :-1], memory)
    torch.testing.assert_close(output.hidden, steps.hidden)
    regions = output.sampled_regions.regions[0]  # (K, T)
    expected = output.attention[0, 0, 0]
    share = torch.bincount(regions[:, 0], minlength=REGIONS) / 4001
    torch.testing.assert_close(share.double(), expected, atol=0.04, rtol=0)
    # given the first region, the second is drawn anew from the attention that it led to
    for first in range(REGIONS):
        after = regions[:, 0] == first
        share = torch.bincount(regions[after, 1], minlength=REGIONS) / after.sum()
        spread = 4 * (0.25 / after.sum().item()) ** 0.5
        torch.testing.assert_close(share.double(), output.attention[0, after, 1].mean(0), atol=spread, rtol=0)


def test_a_share_of_the_images_uses_the_expected_region():
    decoder = made(expected=0.3)
    features, ids = scene(images=2003)
    output = decoder(ids[..., :-1], decoder.encode_memory(features))
    sampled = output.sampled_regions.sampled[:, 0]
    assert 0.65 < sampled.double().mean() < 0.75
    context = output.hidden[:, 0, 0, 7 : 7 + CHANNELS]
    mean = torch.einsum("bn,bnd->bd", output.attention[:, 0, 0], features.regions)
    torch.testing.assert_close(context[~sampled], mean[~sampled])
    rows = torch.arange(2003)
    torch.testing.assert_close(
        context[sampled], features.regions[rows, output.sampled_regions.regions[:, 0, 0]][sampled]
    )


def test_attention_to_the_region_with_the_answer_is_learned():
    """One region of three determines the word; REINFORCE alone, without expected regions, learns which."""
    decoder = made(expected=0.0, entropy=0.0)
    optimizer = torch.optim.Adam(decoder.parameters(), 0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        answer = torch.randint(2, 7, (31,), generator=generator)
        regions = torch.randn(31, REGIONS, CHANNELS, generator=generator, dtype=torch.double)
        region = torch.randint(REGIONS, (31,), generator=generator)
        marked = torch.zeros(31, CHANNELS).double()
        marked[torch.arange(31), answer - 2] = 4.0
        regions[torch.arange(31), region] = marked
        ids = torch.stack([torch.ones_like(answer), answer], -1)[:, None]
        torch.manual_seed(int(answer.sum()))
        output = decoder(ids[..., :-1], decoder.encode_memory(Features(regions)))
        logits = decoder.logits(output.hidden)[:, 0, 0]
        counts = torch.ones(31, 1, 1, dtype=torch.bool)
        loss = cross_entropy(logits, answer, smoothing=0.0)
        logprob = caption_logprobs(logits, answer, counts)
        loss = loss + hard_attention(output.attention, output.sampled_regions, logprob, counts)
        move(output.sampled_regions, logprob, counts)
        optimizer.zero_grad()
        (loss / 31).backward()
        optimizer.step()
    right = output.attention[:, 0, 0][torch.arange(31), region].mean()
    assert right > 0.8


def test_the_training_loss_includes_it_per_token():
    """Two images with three and two captions, padding included, beside a loop over captions."""
    decoder = made(expected=0.5, reward=0.7, entropy=0.2)
    vocabulary = Vocabulary(words=(*SPECIALS, *(f"w{i}" for i in range(VOCABULARY - len(SPECIALS)))))
    encoded = [[[1, 4, 5, 6, 2], [1, 5, 2], [1, 2]], [[1, 6, 6, 2], [1, 4, 2]]]
    ids, batch_sizes, tokens = pad_captions(encoded, captions_per_image=3, pad=0)
    assert tokens == 4 + 2 + 1 + 3 + 2
    features, _ = scene(images=2)
    holder = SimpleNamespace(decoder=decoder, vocabulary=vocabulary, features=lambda images: images)
    batch = Batch(image_ids=[1, 2], images=features, ids=ids, batch_sizes=batch_sizes, tokens=tokens)
    config, used = TrainingConfig(label_smoothing=0.0), set()
    for seed in range(5):
        torch.manual_seed(seed)
        decoder.baseline.fill_(-3.0)
        decoder.float()
        loss = CrossEntropy(holder, config)(batch, BatchStats.of(batch, Vocabulary.pad)).value
        decoder.baseline.fill_(-3.0)
        torch.manual_seed(seed)
        output = decoder(
            ids[..., :-1], decoder.encode_memory(Features(features.regions.float())), batch_sizes
        )
        logprob = decoder.logits(output.hidden).log_softmax(-1)
        expected = 0.0
        for image, captions in enumerate(encoded):
            for k, caption in enumerate(captions):
                target_logprob = sum(logprob[image, k, t, word] for t, word in enumerate(caption[1:]))
                expected = expected - target_logprob
                if output.sampled_regions.sampled[image]:
                    for t in range(len(caption) - 1):
                        alpha = output.attention[image, k, t]
                        log_chosen = alpha[output.sampled_regions.regions[image, k, t]].log()
                        expected = expected - 0.7 * (float(target_logprob.detach()) + 3) * log_chosen
                        expected = expected + 0.2 * (alpha * alpha.log()).sum()
        torch.testing.assert_close(loss, expected / tokens)
        used |= set(output.sampled_regions.sampled.flatten().tolist())
    assert used == {True, False}
