"""Self-critical training: its gradient beside that of the expected reward, what it learns, start and resume."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from captioning.captioner.captioner import Captioner
from captioning.config import parse
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.generation import GreedyConfig, SampleConfig
from captioning.loaders.captions import EncodedCaptions
from captioning.models.decoders import HardAttentionLSTMConfig
from captioning.tensors import Batch, Features, Hypotheses
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training import checkpoint
from captioning.training.batch_stats import BatchStats
from captioning.training.config import SelfCriticalConfig
from captioning.training.rewards import References
from captioning.training.self_critical import SelfCritical, caption_logprobs, longest_first, run_search
from tests.helpers.models import DECODERS
from tests.helpers.toy import Toy
from tests.helpers.training import experiment, tiny_settings

VOCABULARY = Vocabulary(words=(*SPECIALS, "the", "dog"))
END, THE, DOG = VOCABULARY.end, 4, 5
IDS = ["one", "two", "three"]
REFERENCES = [[[DOG, THE, END], [DOG, END]], [[THE, THE, THE, END]], [[DOG, DOG, THE, END]]]


class Holder(nn.Module):
    """As much of a captioner as an objective needs, in float64."""

    def __init__(self, decoder, vocabulary=VOCABULARY):
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary

    def features(self, images):
        return Features(images.regions.double())


def encoded(references):
    flat = [[VOCABULARY.start, *caption] for own in references for caption in own]
    return EncodedCaptions(
        ids=np.concatenate(flat).astype(np.int32),
        caption_offsets=np.cumsum([0, *map(len, flat)]),
        image_offsets=np.cumsum([0, *map(len, references)]),
        num_truncated=0,
    )


def objective(decoder, **config):
    references = References(encoded(REFERENCES), vocabulary_size=len(VOCABULARY))
    return SelfCritical(Holder(decoder), SelfCriticalConfig(**config), references, ids=IDS, seed=3)


def batch_of(ids):
    regions = torch.randn(len(IDS), 2, 3, generator=torch.Generator().manual_seed(5))
    rows = [IDS.index(image_id) for image_id in ids]
    words = torch.zeros(len(ids), 1, 2, dtype=torch.int64)  # of cross-entropy: not looked at
    return Batch(ids, Features(regions[rows]), words, (1,), 1)


def gradient(goal, batch, step=0, images=None):
    goal.zero_grad()
    loss = goal(batch, BatchStats(1, 1, images or len(batch.image_ids), step=step))
    loss.value.backward()
    return torch.cat([p.grad.flatten() for p in goal.parameters()]), loss


def every_caption(most):
    """All that can be sampled, as (words, lengths); the first word is no <end>."""
    for length in range(1, most + 1):
        for words in itertools.product((THE, DOG), repeat=length):
            if length < most:
                yield (*words, END)
            else:
                yield words


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_gradient_is_that_of_the_expected_reward(baseline, temperature):
    """Against the sum over all captions of probability x reward; with CIDEr-D and BLEU mixed."""
    decoder = Toy(channels=3, vocabulary_size=len(VOCABULARY))
    goal = objective(
        decoder, baseline=baseline, samples=701, cider=0.3, bleu=2.0, temperature=temperature, max_length=3
    )
    batch = batch_of(["two"])
    captions = list(every_caption(3))
    assert len(captions) == 2 + 4 + 8 and len(set(captions)) == 14
    lengths = torch.tensor([[len(caption) for caption in captions]])
    words = torch.tensor([[[*c, 0, 0][:3] for c in captions]])
    fake = Hypotheses(words, lengths, *[torch.zeros(())] * 4)
    rewards = goal.references.score(np.array([1]), words.numpy(), lengths.numpy())

    # log-probabilities a word at a time, from the decoder's own steps
    memory = decoder.encode_memory(goal.captioner.features(batch.images))
    logprob = []
    for caption in captions:
        state, read, total = decoder.init_state(memory, 1), VOCABULARY.start, 0.0
        for t, word in enumerate(caption):
            step, state = decoder.step(torch.tensor([[read]]), state, memory)
            allowed = [THE, DOG] if t == 0 else [THE, DOG, END]
            share = (decoder.logits(step.hidden)[0, 0, allowed] / temperature).log_softmax(0)
            total, read = total + share[allowed.index(word)], word
        logprob.append(total)
    logprob = torch.stack(logprob)
    assert logprob.exp().sum().item() == pytest.approx(1.0)
    order = lengths[0].argsort(descending=True, stable=True)
    ours = caption_logprobs(
        decoder,
        memory,
        fake._replace(ids=words[:, order], lengths=lengths[:, order]),
        VOCABULARY,
        temperature=temperature,
    )
    torch.testing.assert_close(ours[0], logprob[order])

    worth = torch.from_numpy(0.3 * rewards.cider + 2.0 * rewards.bleu)[0]
    assert worth.std() > 0.1
    exact = torch.autograd.grad(-(logprob.exp() * worth).sum(), list(decoder.parameters()))
    exact = torch.cat([each.flatten() for each in exact])
    drawn = torch.stack([gradient(goal, batch, step)[0] for step in range(40)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert torch.cosine_similarity(drawn.mean(0), exact, 0) > 0.99 and exact.norm() > 20 * error.mean()


def test_sampled_regions_are_learned_by_the_reward(monkeypatch):
    """Hard attention against the sum over all captions and sequences of regions of probability x reward."""
    torch.manual_seed(0)
    config = HardAttentionLSTMConfig(embedding=3, hidden=5, attention_size=7, dropout=0.4)
    decoder = config.build(channels=3, vocabulary_size=len(VOCABULARY)).double()
    for parameter in decoder.parameters():
        parameter.data.add_(0.7 * torch.randn_like(parameter))
    goal, batch = objective(decoder, samples=701, cider=0.3, bleu=2.0, max_length=2), batch_of(["two"])
    found = [gradient(goal, batch, step)[0] for step in range(40)]
    drawn, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 40**0.5

    captions = list(every_caption(2))
    ids = torch.tensor([captions])  # each of two tokens
    rewards = goal.references.score(np.array([1]), ids.numpy(), np.full((1, len(captions)), 2))
    worth = torch.from_numpy(0.3 * rewards.cider + 2.0 * rewards.bleu)[0]
    memory = decoder.eval().encode_memory(goal.captioner.features(batch.images))
    read = torch.cat([torch.full((1, len(captions), 1), VOCABULARY.start), ids[..., :1]], -1)
    expectation, total = 0.0, 0.0
    for regions in itertools.product(range(2), repeat=2):  # chosen as the most probable ones
        chosen = iter(regions)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "argmax", lambda x, _: torch.full(x.shape[:-1], next(chosen)))  # noqa: B023
            output = decoder(read, memory)
        logits = decoder.logits(output.hidden)[0]  # (K, 2, V)
        logits = logits.masked_fill(torch.tensor([True, True, False, True, False, False]), float("-inf"))
        first = logits[:, 0].index_fill(-1, torch.tensor(END), float("-inf"))
        logprob = (
            torch.stack([first, logits[:, 1]], 1).log_softmax(-1).gather(-1, ids[0, ..., None]).sum((1, 2))
        )
        share = output.attention[0, :, 0, regions[0]] * output.attention[0, :, 1, regions[1]] * logprob.exp()
        expectation, total = expectation + (share * worth).sum(), total + share.sum()
    assert total.item() == pytest.approx(1.0)
    exact = torch.autograd.grad(-expectation, list(decoder.parameters()))
    exact = torch.cat([each.flatten() for each in exact])
    assert ((drawn - exact).abs() <= 5 * error + 1e-12).all()
    assert torch.cosine_similarity(drawn, exact, 0) > 0.99 and exact.norm() > 20 * error.mean()
    attention = torch.cat([decoder.score_weight.grad, decoder.key_proj.weight.grad.flatten()])
    assert attention.norm() > 0.01 * drawn.norm()


@pytest.mark.parametrize("kind", ["lstm", "transformer", "aoa", "hard_attention_lstm"])
def test_log_probabilities_of_a_batch_are_those_of_each_caption_alone(kind):
    """In float64 by single steps, with words renormalised that may come; captions of many lengths."""
    vocabulary = Vocabulary(words=(*SPECIALS, *"abcdefg"))
    torch.manual_seed(2)
    decoder = DECODERS[kind].build(channels=3, vocabulary_size=len(vocabulary)).double().eval()
    memory = decoder.encode_memory(Features(torch.randn(2, 5, 3, dtype=torch.double)))
    found = run_search(decoder, memory, SampleConfig(samples=7, max_length=9), vocabulary, ["x", "y"])
    drawn, places = longest_first(found, torch.arange(7).expand(2, 7))
    assert torch.equal(drawn.ids, torch.stack([found.ids[b, places[b]] for b in range(2)]))
    assert len(set(drawn.lengths.flatten().tolist())) > 3
    assert (drawn.lengths.diff(dim=1) <= 0).all()
    ours = caption_logprobs(decoder, memory, drawn, vocabulary, temperature=1.0)
    state, read = decoder.init_state(memory, 7), torch.full((2, 7), vocabulary.start)
    wanted = torch.zeros(2, 7, dtype=torch.double)
    for t in range(drawn.ids.shape[2]):
        step, state = decoder.step(read, state, memory)
        logits = decoder.logits(step.hidden)
        logits[..., [*vocabulary.special_tokens.suppress_ids, *([vocabulary.end] if t == 0 else [])]] = -1e9
        read = drawn.ids[..., t]
        wanted += logits.log_softmax(-1).gather(-1, read[..., None])[..., 0] * (t < drawn.lengths)
    torch.testing.assert_close(ours, wanted)
    ours.sum().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


def test_what_is_drawn_depends_on_seed_update_and_image_alone():
    """So accumulated batches, in any order, give the gradient of one large one."""
    goal = objective(Toy(channels=3, vocabulary_size=len(VOCABULARY)), samples=5, max_length=6)
    whole, loss = gradient(goal, batch_of(IDS), step=7)
    parts = [gradient(goal, batch_of(each), step=7, images=3) for each in (["three", "one"], ["two"])]
    torch.testing.assert_close(sum(part for part, _ in parts), whole)
    assert sum(part.of for _, part in parts) == loss.of == 15
    for name, value in loss.sums.items():
        assert float(sum(part.sums[name] for _, part in parts)) == pytest.approx(float(value))
    assert not torch.equal(gradient(goal, batch_of(IDS), step=8)[0], whole)
    idle, nothing = gradient(goal, batch_of(["two"])._replace(image_ids=[]), images=3)
    assert nothing.of == 0 and not idle.any() and not any(map(float, nothing.sums.values()))


def test_the_greedy_captions_reward_is_the_baseline():
    decoder = Toy(channels=3, vocabulary_size=len(VOCABULARY))
    goal = objective(decoder, samples=5, baseline="greedy", cider=0.0, bleu=3.0, max_length=4)
    batch = batch_of(IDS)
    loss = goal(batch, BatchStats(1, 1, 3, step=2))
    memory = decoder.encode_memory(goal.captioner.features(batch.images))
    greedy = run_search(decoder, memory, GreedyConfig(max_length=4), VOCABULARY, IDS)
    baseline = 3 * goal.references.score(np.arange(3), greedy.ids.numpy(), greedy.lengths.numpy()).bleu
    assert float(loss.sums["baseline"]) == pytest.approx(5 * baseline.sum()) and baseline.sum() > 0
    assert loss.value.item() == pytest.approx(float(loss.sums["loss"]) / 15)
    assert set(loss.sums) == {"loss", "reward", "baseline", "length", "bad_ending"}


def test_bad_endings_and_lengths_are_counted(monkeypatch):
    goal = objective(Toy(channels=3, vocabulary_size=len(VOCABULARY)), samples=3, max_length=4)
    words = torch.tensor([[[DOG, THE, THE, DOG], [DOG, THE, END, 0], [THE, END, 0, 0]]])
    lengths, finished = torch.tensor([[4, 3, 2]]), torch.tensor([[False, True, True]])
    fixed = Hypotheses(words, lengths, *[torch.zeros(1, 3)] * 3, finished)
    monkeypatch.setattr("captioning.training.self_critical.longest_first", lambda _, states: (fixed, states))
    sums = goal(batch_of(["one"]), BatchStats(1, 1, 1)).sums
    assert (float(sums["length"]), float(sums["bad_ending"])) == (4 + 2 + 1, 2)  # "dog the", "the"
    reward = goal.references.score(np.array([0]), words.numpy(), lengths.numpy()).cider
    assert float(sums["reward"]) == pytest.approx(reward.sum())
    assert float(sums["baseline"]) == pytest.approx(reward.sum())  # means of the others have the same mean


def test_training_raises_the_reward():
    torch.manual_seed(0)
    decoder = Toy(channels=3, vocabulary_size=len(VOCABULARY))
    goal = objective(decoder, samples=11, max_length=6)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.05)
    rewards = []
    for step in range(80):
        optimizer.zero_grad()
        loss = goal(batch_of(IDS), BatchStats(1, 1, 3, step=step))
        loss.value.backward()
        optimizer.step()
        rewards.append(float(loss.sums["reward"]) / loss.of)
    best = goal.references.score(
        np.arange(3),
        np.array([[[*own[0], 0, 0, 0, 0][:4]] for own in REFERENCES]),
        np.array([[len(own[0])] for own in REFERENCES]),
    ).cider.mean()
    assert np.mean(rewards[:5]) < 0.25 * best and np.mean(rewards[-5:]) > 0.8 * best


def test_dropout_takes_no_part():
    from captioning.models.decoders import SoftAttentionLSTMConfig

    torch.manual_seed(0)
    config = SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=5, dropout=0.5)
    decoder = config.build(channels=3, vocabulary_size=len(VOCABULARY)).double()
    goal = objective(decoder, samples=5).train()
    assert decoder.training
    one, other = (gradient(goal, batch_of(IDS))[0] for _ in range(2))
    assert torch.equal(one, other)


def phased(folder, name, **self_critical):
    values = tiny_settings(folder, name, epochs=1)
    values["phases"] = [
        {**values["training"], "epochs": 2, "learning_rate": 1e-3, "save_every": 2,
         "self_critical": {"samples": 3, "max_length": 12, **self_critical}}
    ]  # fmt: skip
    return values


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_a_run_resumed_within_the_phase_equals_an_uninterrupted_one(baseline, tmp_path, monkeypatch):
    whole = experiment(phased(tmp_path, "whole", baseline=baseline))
    whole.train()
    cut = parse(phased(tmp_path, "cut", baseline=baseline), where="test")
    real, saves = checkpoint.save, []

    def killed_at_the_fourth_save(*args, **kwargs):
        saves.append(1)
        if len(saves) == 4:  # an epoch of 5 updates of cross-entropy, updates 6 and 8, and the epoch's end
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", killed_at_the_fourth_save)
    with pytest.raises(KeyboardInterrupt):
        Experiment(cut, log=lambda _: None).train()
    monkeypatch.setattr(checkpoint, "save", real)
    told = json.loads((tmp_path / "runs" / "cut" / "checkpoints" / "last" / "progress.json").read_text())
    assert (told["phase"], told["step"], told["epoch_step"]) == (1, 8, 3)
    torch.manual_seed(12345)
    Experiment(cut, log=lambda _: None).train(resume=True)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / "runs" / n / "checkpoints" / "last" / file for n in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), f"{file} differs"
    one, other = ((tmp_path / "runs" / n / "metrics.jsonl").read_bytes() for n in ("whole", "cut"))
    assert one == other and b"train/bad_ending" in one


def test_a_run_starts_from_a_finished_one(tmp_path):
    first = experiment(tiny_settings(tmp_path, "first", epochs=1))
    first.train()
    values = tiny_settings(tmp_path, "second", epochs=1)
    values["training"] |= {"learning_rate": 1e-12, "ema_decay": 0.0, "self_critical": {"samples": 2}}
    for start in (first.folder, first.folder / "model"):
        values |= {"start": str(start), "name": start.name}
        if start == first.folder:
            values["name"] = "from_run"
        said = []
        second = experiment(values, said.append)
        second.train()
        assert any(str(first.folder / "model") in line for line in said)
        one, other = (Captioner.open(run.folder / "model").decoder.state_dict() for run in (first, second))
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-8, rtol=0)

    for change, message in (
        (
            {"vocabulary": {"min_count": 9}},
            r"start: the vocabulary of .*model \(\d+ words\) is not that of these .*; use that run's dataset",
        ),
        ({"preprocessing": {"size": 32, "crop": 0.9}}, r"start: .*other preprocessing"),
        ({"decoder": {"kind": "show_tell", "hidden": 16}}, r"weight .* is (missing|not in this)"),
        ({"start": str(tmp_path)}, r"not a model folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            experiment({**values, "name": "x", **change}).train()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, r"training\.self_critical: baseline=mean needs at least 2 samples, got samples=1"),
        ({"cider": 0}, r"training\.self_critical: cider and bleu are both 0"),
        ({"sampels": 3}, r"training\.self_critical\.sampels: unknown key; did you mean .*\.samples"),
        ({"max_length": 65}, r"no more than 32 words, but with training\.self_critical\.max_length up to 65"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told_in_one_sentence(settings, message, tmp_path):
    values = tiny_settings(tmp_path, "run", "transformer")
    values["training"]["self_critical"] = settings
    with pytest.raises(UserError, match=message) as caught:
        parse(values, where="test")
    assert "\n" not in str(caught.value)
